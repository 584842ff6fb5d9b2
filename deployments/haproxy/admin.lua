-- The verbs that Skyferry speaks over the admin connection. Each acts at once and then writes what stands into the
-- run directory, where a reload or a fresh start finds it: HAProxy itself would forget splits, servers and keys.
--
-- In a reload the old worker still serves verbs after the new one has read those files. So a worker that begins to run
-- writes its name down and then reads them again; and a verb is answered only by the worker whose name stands there
-- once all is written. Either the new worker's reading is the later one and finds what the verb has written, or the
-- verb finds the new worker's name, and its caller is told to try again.

local run_directory = ...
local worker_file = run_directory .. "/worker"
local own_name = io.lines("/proc/sys/kernel/random/uuid")()
local split_file = run_directory .. "/split.map"
local servers_file = run_directory .. "/servers"
local keys_file = run_directory .. "/keys.map"

local splits = Map.new(split_file, Map._str)
local keys = Map.new(keys_file, Map._str)

-- How servers are spoken to, and the letter that their names begin with.
local letters = { plain = "r", tls = "t" }

local function services()
  local names = {}
  for backend in pairs(core.backends) do
    names[#names + 1] = backend:match("^(.+)%-blue$")
  end
  table.sort(names)
  return names
end

local function check_service(service)
  if not core.backends[tostring(service) .. "-blue"] then
    error("there is no service " .. tostring(service) .. "; there are: " .. table.concat(services(), ", "), 0)
  end
end

local function backend_of(service, slot)
  check_service(service)
  if slot ~= "blue" and slot ~= "green" then
    error("there is no slot " .. tostring(slot) .. "; there are: blue, green", 0)
  end
  return service .. "-" .. slot
end

-- A place is a server that the configuration declares in advance; it is empty while in maintenance.
local function places_of_kind(backend, kind)
  local found = {}
  local servers = core.backends[backend].servers
  while servers[letters[kind] .. #found + 1] do
    found[#found + 1] = servers[letters[kind] .. #found + 1]
  end
  return found
end

local function places(backend)
  local found = places_of_kind(backend, "plain")
  for _, place in ipairs(places_of_kind(backend, "tls")) do
    found[#found + 1] = place
  end
  return found
end

local function kind_of(place)
  return place:get_name():sub(1, 1) == letters.tls and "tls" or "plain"
end

local function is_empty(place)
  return place:get_stats().status == "MAINT"
end

local function in_flight(place)
  local stats = place:get_stats()
  return stats.scur + stats.qcur
end

local function address_of(place)
  local host, port = place:get_addr():match("^(.*):(%d+)$")
  return (host:find(":") and "[" .. host .. "]" or host) .. ":" .. port
end

local function find(backend, address)
  for _, place in ipairs(places(backend)) do
    if not is_empty(place) and address_of(place) == address then
      return place
    end
  end
end

local function empty_place(backend, kind)
  local all = places_of_kind(backend, kind)
  if #all == 0 then
    error("this gateway knows no authority that vouches for replicas; set replica_ca in its settings", 0)
  end
  for _, place in ipairs(all) do
    -- Requests that the last server there has yet to end would count as the next one's.
    if is_empty(place) and in_flight(place) == 0 then
      return place
    end
  end
  error("all " .. #all .. " " .. kind .. " places of " .. backend .. " are taken; detach a server first", 0)
end

-- Leaves the place draining: out of maintenance by that way, no request slips in before the caller has decided.
local function occupy(place, address)
  local host, port = tostring(address):match("^%[?(.-)%]?:(%d+)$")
  place:set_addr(host or "", tonumber(port) or 0)
  if address_of(place) ~= address then
    error(tostring(address) .. " is no address; give an IP and a port, as in 192.0.2.7:8000 or [2001:db8::7]:8000", 0)
  end
  place:set_drain()
end

local function write(path, lines)
  -- Two workers may write at the same time.
  local draft = path .. "." .. own_name .. ".draft"
  local file = assert(io.open(draft, "w"))
  assert(file:write(table.concat(lines, "\n"), "\n"))
  assert(file:close())
  assert(os.rename(draft, path))
end

-- Stands in split.map as well: a service's name has no dot.
local function salt_of(service)
  return service .. ".salt"
end

-- Of 128 bits, so that nobody can tell, or choose, on which side of a split a user is.
local function new_salt()
  local random = assert(io.open("/dev/urandom", "rb"))
  random:setvbuf("no")
  local bytes = assert(random:read(16))
  random:close()
  return (bytes:gsub(".", function(one)
    return string.format("%02x", one:byte())
  end))
end

-- A service that is new has all of its traffic on blue.
local function split_of(service)
  return splits:lookup(service) or "0"
end

local function save_splits()
  local lines = {}
  for _, service in ipairs(services()) do
    lines[#lines + 1] = service .. " " .. split_of(service)
    local salt = splits:lookup(salt_of(service))
    lines[#lines + 1] = salt and salt_of(service) .. " " .. salt
  end
  write(split_file, lines)
end

local function save_servers()
  local lines = {}
  for _, service in ipairs(services()) do
    for _, backend in ipairs({ service .. "-blue", service .. "-green" }) do
      for _, place in ipairs(places(backend)) do
        if not is_empty(place) then
          local mode = place:is_draining() and "drain" or "ready"
          lines[#lines + 1] = table.concat({ backend, address_of(place), mode, kind_of(place) }, " ")
        end
      end
    end
  end
  write(servers_file, lines)
end

local function save_keys()
  local lines = {}
  for _, service in ipairs(services()) do
    for _, backend in ipairs({ service .. "-blue", service .. "-green" }) do
      local key = keys:lookup(backend)
      lines[#lines + 1] = key and backend .. " " .. key
    end
  end
  write(keys_file, lines)
end

local function lines_of(path)
  local file = io.open(path)
  if not file then
    return {}
  end
  local lines = {}
  for line in file:lines() do
    lines[#lines + 1] = line
  end
  file:close()
  return lines
end

local function restore_splits()
  for _, line in ipairs(lines_of(split_file)) do
    local key, value = line:match("^(%S+) (%S+)$")
    if key and splits:lookup(key) ~= value then
      core.set_map(split_file, key, value)
    end
  end
end

local function restore_keys()
  local saved = {}
  for _, line in ipairs(lines_of(keys_file)) do
    local backend, key = line:match("^(%S+) (%S+)$")
    saved[backend or ""] = key
  end
  for _, service in ipairs(services()) do
    for _, backend in ipairs({ service .. "-blue", service .. "-green" }) do
      if saved[backend] and saved[backend] ~= keys:lookup(backend) then
        core.set_map(keys_file, backend, saved[backend])
      elseif keys:lookup(backend) and not saved[backend] then
        core.del_map(keys_file, backend)
      end
    end
  end
end

local function restore_servers()
  local saved, stays = {}, {}
  for _, line in ipairs(lines_of(servers_file)) do
    -- Without its last word in a file that an older Skyferry wrote.
    local backend, address, mode, kind = line:match("^(%S+) (%S+) (%S+) ?(%S*)$")
    -- The service may have left the configuration since.
    if backend and core.backends[backend] then
      kind = kind == "tls" and "tls" or "plain"
      saved[#saved + 1] = { backend = backend, address = address, mode = mode, kind = kind }
      stays[backend .. " " .. address .. " " .. kind] = true
    end
  end
  for _, service in ipairs(services()) do
    for _, backend in ipairs({ service .. "-blue", service .. "-green" }) do
      for _, place in ipairs(places(backend)) do
        if not is_empty(place) and not stays[backend .. " " .. address_of(place) .. " " .. kind_of(place)] then
          place:set_maint()
        end
      end
    end
  end
  for _, server in ipairs(saved) do
    local place = find(server.backend, server.address)
    if not place then
      place = empty_place(server.backend, server.kind)
      occupy(place, server.address)
    end
    if server.mode ~= "ready" then
      place:set_drain()
    elseif place:is_draining() then
      place:set_ready()
    end
  end
end

core.register_init(restore_servers)

local has_begun = false

local function begin()
  if not has_begun then
    write(worker_file, { own_name })
    restore_splits()
    restore_keys()
    restore_servers()
    has_begun = true
  end
end

core.register_task(begin)

local verbs = {}

function verbs.split(service, basis_points)
  check_service(service)
  if basis_points then
    local share = math.tointeger(tonumber(basis_points))
    if not share or share < 0 or share > 10000 then
      error(basis_points .. " is no share; give green's in whole basis points, 0 to 10000", 0)
    end
    local before = tonumber(split_of(service))
    if (before == 0 or before == 10000) and share > 0 and share < 10000 then
      -- A release gets its first share: others come first than in the last one. Until now the salt decided nothing.
      local salt = new_salt()
      core.set_map(split_file, salt_of(service), salt)
      if splits:lookup(salt_of(service)) ~= salt then
        error("the salt of " .. service .. " did not change, so its split stays; reload the gateway and try again", 0)
      end
    end
    core.set_map(split_file, service, tostring(share))
    save_splits()
  end
  return split_of(service)
end

function verbs.servers(service)
  check_service(service)
  local lines = {}
  for _, slot in ipairs({ "blue", "green" }) do
    for _, place in ipairs(places(service .. "-" .. slot)) do
      if not is_empty(place) then
        local status = place:get_stats().status
        local state = place:is_draining() and "draining" or status:match("^UP") and "up" or "down"
        lines[#lines + 1] = table.concat({ slot, address_of(place), state, in_flight(place) }, " ")
      end
    end
  end
  return table.concat(lines, "\n")
end

function verbs.attach(service, slot, address, kind)
  local backend = backend_of(service, slot)
  local place = find(backend, address)
  if place and kind_of(place) ~= kind then
    error(address .. " is attached as " .. kind_of(place) .. " and not as " .. tostring(kind) .. "; detach it first", 0)
  end
  if not place then
    place = empty_place(backend, kind)
    occupy(place, address)
    -- Down until its first health check has passed.
    place:check_force_down()
  end
  place:set_ready()
  save_servers()
  return "attached"
end

function verbs.drain(service, slot, address)
  local place = find(backend_of(service, slot), address)
  if not place then
    error("there is no server " .. tostring(address) .. " in " .. slot .. " of " .. service .. "; attach it first", 0)
  end
  place:set_drain()
  save_servers()
  return "draining"
end

function verbs.detach(service, slot, address)
  local place = find(backend_of(service, slot), address)
  if place then
    place:set_maint()
    save_servers()
  end
  return "detached"
end

-- Answers and errors never quote the key.
function verbs.key(service, slot, key)
  local backend = backend_of(service, slot)
  if key then
    core.set_map(keys_file, backend, key)
  else
    core.del_map(keys_file, backend)
  end
  if keys:lookup(backend) ~= key then
    error("the key of " .. slot .. " of " .. service .. " did not change", 0)
  end
  save_keys()
  return key and "set" or "none"
end

for verb, act in pairs(verbs) do
  core.register_cli({ "skyferry", verb }, "skyferry " .. verb, function(applet, _, _, ...)
    local did, answer = pcall(begin)
    if did then
      did, answer = pcall(act, ...)
      if lines_of(worker_file)[1] ~= own_name then
        applet:send("again the gateway has been reloaded just now\n")
        return
      end
    end
    applet:send((did and "ok\n" or "refused ") .. tostring(answer) .. "\n")
  end)
end
