-- What a good answer is: it ends well only if it says so in its protocol, and it is empty only if nothing was generated.
-- The probes' reader, blocks/engines/answers.py, goes by the same; tests/gateway/answers.yaml holds the examples for both.
--
-- An event is a token if something is said in it, in OpenAI's or Anthropic's forms. Most events of a stream differ in
-- nothing but the word that they say: what stands before and after it is compared, and only what differs is read.

local json = require("json")

local Answer = {}
Answer.__index = Answer

-- Of an event, or of an answer that is not streamed, no more than this is kept. What is longer is not looked into.
local KEPT_BYTES = 65536

-- Of a stream, no more is taken apart, which takes some 200 ms of a core for each MiB at worst: one without an end would
-- have a core to itself. What most events of a stream have in common is not taken apart, and counts for nothing.
local MOST_BYTES = 16 * 1024 * 1024

-- The longest that stands before an event's data on its line, and some more.
local FIELD_BYTES = 16

-- How often in a stream it is tried to learn what its events have in common.
local MOST_LESSONS = 8

-- The kinds of request that ask for words; of others it is only told where they end in an error.
local GENERATES = { chat = true, completion = true, response = true, message = true }

local GOOD_ENDS = {
  stop = true,
  length = true,
  tool_calls = true,
  function_call = true,
  eos_token = true, -- of older text-generation-inference, which says nothing after it
  content_filter = true,
  end_turn = true,
  max_tokens = true,
  model_context_window_exceeded = true,
  stop_sequence = true,
  tool_use = true,
  pause_turn = true,
  refusal = true,
}
local BAD_ENDS = { abort = true, error = true, cancelled = true, failed = true }
-- Where the user's own limit ended it there may be nothing to see.
local AT_THE_LIMIT = { length = true, max_tokens = true, model_context_window_exceeded = true, incomplete = true }

-- A response that its user fetches later; there is nothing to see of it yet.
local GOES_ON = { queued = true, in_progress = true }

-- What names its error and has no number for it.
local STATUS_OF = {
  invalid_request_error = 400,
  authentication_error = 401,
  billing_error = 402,
  permission_error = 403,
  not_found_error = 404,
  request_too_large = 413,
  rate_limit_error = 429,
  rate_limit_exceeded = 429,
  server_error = 500,
  api_error = 500,
  overloaded_error = 529,
}

-- Parts of a delta or a message that are not what is said.
local NO_WORDS = { role = true, type = true }

local function is_object(value)
  return type(value) == "table"
end

local function first(value, other)
  if value ~= nil then
    return value
  end
  return other
end

local function is_something(value)
  if is_object(value) then
    return next(value) ~= nil
  end
  return value ~= nil and value ~= "" and value ~= false
end

-- Of a delta, a message or a block of content; or a bare word.
local function says_something(said)
  if not is_object(said) then
    return is_something(said)
  end
  for name, value in pairs(said) do
    if not NO_WORDS[name] and is_something(value) then
      return true
    end
  end
  return false
end

local function status_in(...)
  for _, value in ipairs({ ... }) do
    local status = math.tointeger(tonumber(value))
    if status and status >= 400 and status <= 599 then
      return status
    end
  end
end

function Answer.new(kind, is_stream)
  return setmetatable({
    generates = GENERATES[kind] or false,
    is_stream = is_stream,
    tokens = 0,
    is_said = false,
    has_ended = false,
    rest = "",
    parts = {},
    size = 0,
    taken_apart = 0,
    lessons = 0,
  }, Answer)
end

function Answer:fail(problem, around)
  local of = is_object(problem) and problem or {}
  self.is_broken = true
  self.error_status = self.error_status
    or status_in(of.code or false, of.status or false, of.status_code or false, around.code or false, around.status or false)
    or STATUS_OF[of.type]
    or STATUS_OF[of.code]
end

function Answer:end_by(reason)
  if BAD_ENDS[reason] then
    self:fail(nil, {})
  elseif GOOD_ENDS[reason] then
    self.has_ended, self.is_finished = true, true
    self.is_at_limit = self.is_at_limit or AT_THE_LIMIT[reason]
  end
end

function Answer:say()
  self.is_said = true
  if self.is_stream then
    self.tokens = self.tokens + 1
  end
end

function Answer:take_usage(usage)
  if is_object(usage) then
    for _, count in ipairs({ first(usage.completion_tokens, false), first(usage.output_tokens, false) }) do
      if type(count) == "number" then
        self.generated = count
        return
      end
    end
  end
end

function Answer:take_choices(choices)
  local is_token = false
  for _, choice in ipairs(choices) do
    if is_object(choice) then
      is_token = is_token or says_something(first(choice.delta, choice.message)) or is_something(choice.text)
      if choice.finish_reason then
        self:end_by(choice.finish_reason)
      end
    end
  end
  if is_token then
    self:say()
  end
end

-- The items of a response, or the blocks of a message. A call of a tool may be all that there is.
function Answer:take_items(items)
  for _, item in ipairs(is_object(items) and items or {}) do
    if is_object(item) then
      local is_plain = item.type == "message" or item.type == "reasoning" or item.type == "text" or item.type == "thinking"
      local words = first(first(first(item.content, item.summary), item.text), item.thinking)
      if is_something(words) or not is_plain then
        self.is_said = true
      end
    end
  end
end

-- /v1/responses, as a whole.
function Answer:take_response(response)
  self:take_usage(response.usage)
  self:take_items(response.output)
  if BAD_ENDS[response.status] then
    self:fail(response.error, response)
  else
    self.has_ended = true
    self.is_said = self.is_said or GOES_ON[response.status]
    self.is_at_limit = self.is_at_limit or AT_THE_LIMIT[response.status]
  end
end

-- An event's data, or the whole of an answer that is not streamed.
function Answer:take(object, name)
  local kind = type(object.type) == "string" and object.type ~= "" and object.type or name or ""
  if kind == "error" or object.object == "error" or object.error then
    self:fail(object.error, object)
    return
  end
  self:take_usage(object.usage)
  if is_object(object.choices) then
    self:take_choices(object.choices)
  elseif kind == "response.failed" or kind == "response.cancelled" then
    local response = is_object(object.response) and object.response or {}
    self:fail(response.error, {})
  elseif kind == "response.completed" or kind == "response.incomplete" then
    self:take_response(is_object(object.response) and object.response or {})
    self.is_at_limit = self.is_at_limit or kind == "response.incomplete"
  elseif object.object == "response" then
    self:take_response(object)
  elseif kind == "message_stop" then
    self.has_ended = true
  elseif kind == "message_delta" then
    self:end_by(is_object(object.delta) and object.delta.stop_reason)
    self.has_ended = false
  elseif kind == "content_block_start" then
    self:take_items({ object.content_block })
  elseif kind == "message" then
    self:take_items(object.content)
    self:end_by(object.stop_reason)
  elseif kind == "content_block_delta" or kind:find(".delta", -6, true) then
    if says_something(first(object.delta, object.audio)) then
      self:say()
    end
  end
end

-- What stands before the word in such an event and what after it, once it is sure that there is nothing else to it.
function Answer:learn(line)
  self.lessons = self.lessons + 1
  for _, key in ipairs({ "content", "reasoning_content", "reasoning", "text" }) do
    local _, before = line:find('"' .. key .. '": ?"')
    local after = before and line:find('"', before + 1, true)
    if after then
      local head, tail = line:sub(1, before), line:sub(after)
      local object = json.read(head:match("^data: ?(.*)$") .. "word" .. tail)
      local choice = object and not object.usage and is_object(object.choices) and object.choices[1]
      if is_object(choice) and #object.choices == 1 and not choice.finish_reason then
        if (is_object(choice.delta) and choice.delta[key] or choice[key]) == "word" then
          self.head, self.tail = head, tail
          return
        end
      end
    end
  end
end

-- An event that is too long, or nested too deep, to be looked into: only its name can tell, where it has one. What a
-- response begins with and ends in has all of its user's own words and tools in it.
function Answer:take_unread(name)
  if name == "error" or name == "response.failed" or name == "response.cancelled" then
    self:fail(nil, {})
  elseif name == "response.completed" or name == "response.incomplete" then
    self.is_said, self.has_ended = true, true
  elseif name:find("delta", -5, true) or not (name:find("^response%.") or name:find("^message_") or name:find("^content_block_")) then
    self:say()
  end
end

-- An event whose lines have all come.
function Answer:dispatch()
  local name, data, is_long = self.name, table.concat(self.parts, "\n"), self.size > KEPT_BYTES
  local line = #self.parts == 1 and not name and self.line
  self.name, self.parts, self.size, self.line = nil, {}, 0, nil
  if is_long then
    self:take_unread(name or "")
    return
  end
  if data:find("^%s*%[DONE%]%s*$") then
    self.has_ended = true
    return
  end
  local object, is_deep = json.read(data)
  if is_object(object) then
    local before = self.tokens
    self:take(object, name)
    if line and self.tokens > before and self.lessons < MOST_LESSONS then
      self:learn(line)
    end
  elseif is_deep then
    self:take_unread(name or "")
  elseif name == "error" then
    self:fail(nil, {})
  end
end

function Answer:take_line(line)
  if line == "" then
    if self.name or self.size > 0 then
      self:dispatch()
    end
    return
  end
  local field, value = line:match("^([^:]*): ?(.*)$")
  if field == "data" then
    self.size = self.size + #value + 1
    if self.size <= KEPT_BYTES then
      self.parts[#self.parts + 1] = value
      self.line = line
    end
  elseif field == "event" then
    self.name = value:sub(1, 100)
  elseif field == "error" then
    -- As older llama.cpp says it.
    local object = json.read(value)
    self:fail(object, is_object(object) and object or {})
  end
end

-- A piece of a stream, however it is cut; false once it is too much to be looked into.
function Answer:read(piece)
  if self.ended_in_return and piece:byte(1) == 10 then
    piece = piece:sub(2)
  end
  self.ended_in_return = piece:byte(-1) == 13
  if piece:find("\r", 1, true) then
    piece = piece:gsub("\r\n?", "\n")
  end
  local text, from = self.rest .. piece, 1
  if not self.has_begun then
    if #text < 3 then
      self.rest = text
      return true
    end
    self.has_begun = true
    from = text:find("^\239\187\191") and 4 or 1
  end
  local line_end = text:find("\n", from, true)
  while line_end do
    if not self:is_next_word(text, from, line_end) then
      self:take_line(text:sub(from, line_end - 1))
      self.taken_apart = self.taken_apart + line_end - from + 1
      from = line_end + 1
    else
      self.tokens = self.tokens + 1
      from = line_end + 2
    end
    line_end = text:find("\n", from, true)
  end
  self.rest = text:sub(from, from + KEPT_BYTES + FIELD_BYTES)
  self.is_long = self.taken_apart > MOST_BYTES
  return not self.is_long
end

-- Whether this line is an event by itself that differs in its word alone from one that was read.
function Answer:is_next_word(text, from, line_end)
  local head = self.head
  if not head or self.size > 0 or self.name or text:byte(line_end + 1) ~= 10 then
    return false
  end
  local word = from + #head
  if text:sub(from, word - 1) ~= head then
    return false
  end
  local quote = text:find('"', word, true)
  return quote and quote > word and text:byte(quote - 1) ~= 92 and text:sub(quote, line_end - 1) == self.tail
end

-- A piece of what is not streamed; false once it is too long to be looked into.
function Answer:keep(piece)
  self.size = self.size + #piece
  if self.size > KEPT_BYTES then
    self.parts, self.is_long = {}, true
    return false
  end
  self.parts[#self.parts + 1] = piece
  return true
end

function Answer:finish_stream()
  -- An event whose blank line never came is one all the same, as OpenAI's own client reads it.
  if self.rest ~= "" then
    self:take_line(self.rest)
  end
  self:take_line("")
end

function Answer:finish_body()
  if self.is_long then
    self.is_said = true
    return
  end
  local body = table.concat(self.parts)
  if not body:find("[^ \t\r\n]") then
    return
  end
  local object, is_deep = json.read(body)
  if is_object(object) and body:find("^[ \t\r\n]*{") then
    self:take(object)
    -- Of a form that nobody knows nothing is told.
    local is_known = object.choices or object.object == "response" or object.type == "message"
    self.is_said = self.is_said or not is_known
  elseif is_deep then
    self.is_said = true
  else
    self.is_broken = self.generates
  end
end

-- Once all has come: in a word how it went, and where it ended in an error the status that this named.
function Answer:verdict()
  if self.is_stream then
    self:finish_stream()
  else
    self:finish_body()
  end
  if self.is_broken then
    return "error", self.error_status
  end
  if not self.generates or (self.is_stream and self.is_long) then
    return "no"
  end
  if self.is_stream and not self.has_ended then
    return "cut"
  end
  local has_generated = self.is_said or self.is_at_limit or (self.generated or (self.is_finished and 1 or 0)) > 0
  return has_generated and "no" or "empty"
end

return Answer
