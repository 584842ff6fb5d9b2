-- Reads JSON of strangers: bounded in depth, and with no more of it taken apart than what an answer is known by.
--
-- Long strings stay as they are written, escapes and all: they are only asked for being empty. What is null is left out.

local json = {}

local DEEPEST = 32
local TOO_DEEP = "deep"
-- Of no more bytes are the words that anything is compared with.
local LONGEST_WORD = 64

local byte, find, sub = string.byte, string.find, string.sub
local LITERALS = { ["true"] = true, ["false"] = false, ["NaN"] = 0, ["Infinity"] = 0, ["-Infinity"] = 0 }

-- What may follow a backslash.
local ESCAPED = {}
for letter in ('"\\/bfnrtu'):gmatch(".") do
  ESCAPED[byte(letter)] = true
end

local function fail()
  error("no JSON", 0)
end

-- The position of the quote that ends the string that begins before `at`.
local function string_end(text, at)
  while true do
    local found = find(text, '["\\]', at)
    if not found then
      fail()
    end
    if byte(text, found) == 34 then
      return found
    end
    if not ESCAPED[byte(text, found + 1)] then
      fail()
    end
    at = found + 2
  end
end

-- Between these two quotes; a word may be spelt in escapes as well.
local function string_between(text, first, last)
  local value = sub(text, first, last)
  if #value <= LONGEST_WORD and find(value, "\\u00", 1, true) then
    return (value:gsub("\\u00(%x%x)", function(code)
      return string.char(tonumber(code, 16))
    end))
  end
  return value
end

local read

local function read_object(text, at, depth)
  local object = {}
  at = find(text, "[^ \t\r\n]", at) or fail()
  if byte(text, at) == 125 then
    return object, at + 1
  end
  while true do
    local _, key = find(text, '^[ \t\r\n]*"', at)
    if not key then
      fail()
    end
    local key_end = string_end(text, key + 1)
    local _, colon = find(text, "^[ \t\r\n]*:", key_end + 1)
    if not colon then
      fail()
    end
    object[string_between(text, key + 1, key_end - 1)], at = read(text, colon + 1, depth)
    at = find(text, "[^ \t\r\n]", at) or fail()
    local mark = byte(text, at)
    if mark == 125 then
      return object, at + 1
    elseif mark ~= 44 then
      fail()
    end
    at = at + 1
  end
end

local function read_array(text, at, depth)
  local array = {}
  at = find(text, "[^ \t\r\n]", at) or fail()
  if byte(text, at) == 93 then
    return array, at + 1
  end
  while true do
    array[#array + 1], at = read(text, at, depth)
    at = find(text, "[^ \t\r\n]", at) or fail()
    local mark = byte(text, at)
    if mark == 93 then
      return array, at + 1
    elseif mark ~= 44 then
      fail()
    end
    at = at + 1
  end
end

function read(text, at, depth)
  at = find(text, "[^ \t\r\n]", at) or fail()
  local mark = byte(text, at)
  if mark == 34 then
    local last = string_end(text, at + 1)
    return string_between(text, at + 1, last - 1), last + 1
  elseif mark == 123 or mark == 91 then
    if depth == DEEPEST then
      error(TOO_DEEP, 0)
    end
    return (mark == 123 and read_object or read_array)(text, at + 1, depth + 1)
  end
  local _, last = find(text, "^[%w.+-]+", at)
  if not last then
    fail()
  end
  local word = sub(text, at, last)
  if word == "null" then
    return nil, last + 1
  end
  -- Lua itself takes other numbers as well.
  local value = find(word, "^-?%d[%d.eE+-]*$") and tonumber(word)
  if not value then
    value = LITERALS[word]
    if value == nil then
      fail()
    end
  end
  return value, last + 1
end

local function read_all(text)
  local value, at = read(text, 1, 0)
  return not find(text, "[^ \t\r\n]", at) and value or fail()
end

-- Nothing where it is no JSON; then also whether it may be some, and is nested too deep to tell.
function json.read(text)
  local did, value = pcall(read_all, text)
  if did then
    return value
  end
  return nil, value == TOO_DEEP
end

return json
