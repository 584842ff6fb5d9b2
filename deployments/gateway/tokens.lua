-- Looks into the body of an answer: when its first token came, when its last one, how many there were, and whether
-- there was anything in it. HAProxy's own %Tr stops at the headers, which servers of event streams send long before the
-- first token; and a stream that says nothing, or ends in an error, is a good answer to HAProxy.
--
-- An event of a stream is a token: vLLM and llama.cpp send one for each, and one more at the end.

local Answer = { id = "tokens of an answer", flags = filter.FLT_CFG_FL_HTX }
Answer.__index = Answer

-- Of an event, no more than this is kept until its end has come.
local KEPT_BYTES = 65536

-- How OpenAI's forms say something; what has no choices is of another form, of which nothing can be told.
local CONTENT = {
  'content": ?"[^"]',
  'text": ?"[^"]',
  'tool_calls": ?%[{',
  'reasoning": ?"[^"]',
  'refusal": ?"[^"]',
}

local function says_something(text)
  if not text:find('"choices"', 1, true) then
    return true
  end
  for _, pattern in ipairs(CONTENT) do
    if text:find(pattern) then
      return true
    end
  end
  return false
end

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec / 1000
end

function Answer:new()
  return setmetatable({}, Answer)
end

function Answer:start_analyze(txn, channel)
  if not channel:is_resp() then
    self.began = milliseconds()
  end
end

function Answer:http_headers(txn, message)
  if not message.channel:is_resp() then
    return
  end
  local headers = message:get_headers()
  local kind = headers["content-type"] and headers["content-type"][0] or ""
  local is_packed = headers["content-encoding"] ~= nil
  if kind:find("text/event-stream", 1, true) == 1 then
    self.look = is_packed and self.first_byte or self.events
    self.tokens, self.rest = not is_packed and 0 or nil, ""
  elseif kind:find("application/json", 1, true) == 1 and not is_packed and headers["content-length"] then
    self.look, self.length = self.whole, tonumber(headers["content-length"][0])
    self.is_empty = self.length == 0
  end
  if self.look then
    filter.register_data_filter(self, message.channel)
  end
end

function Answer:http_payload(txn, message)
  -- It is called for the headers and for the end as well, where there is no body.
  local body = message:body()
  if body and #body > 0 then
    self:look(body, message)
  end
end

function Answer:first_byte(_, message)
  self.first = milliseconds()
  filter.unregister_data_filter(self, message.channel)
end

-- Only where the body comes in one piece, as short ones do: an empty one is short.
function Answer:whole(body, message)
  self.is_empty = #body == self.length and not says_something(body)
  filter.unregister_data_filter(self, message.channel)
end

function Answer:events(body)
  local text, from = self.rest .. body, 1
  local tokens = self.tokens
  local line_end = text:find("\n", from, true)
  while line_end do
    local _, before = text:find("^data: ?", from)
    if before then
      if text:find('^{"error"', before + 1) then
        self.is_broken = true
      elseif not text:find("^%[DONE%]", before + 1) then
        -- From the first one on that says something, each counts: to look into all of them would be dear.
        if tokens > 0 or says_something(text:sub(from, line_end)) then
          tokens = tokens + 1
        end
      end
    end
    from = line_end + 1
    line_end = text:find("\n", from, true)
  end
  self.rest = text:sub(from, from + KEPT_BYTES)
  if tokens > self.tokens then
    self.tokens, self.last = tokens, milliseconds()
    self.first = self.first or self.last
  end
end

-- HAProxy writes the log line after it, however the answer ended.
function Answer:end_analyze(txn, channel)
  if not channel:is_resp() or not self.look then
    return
  end
  if self.first then
    txn:set_var("txn.ttft_ms", string.format("%.1f", self.first - self.began))
  end
  if self.last then
    txn:set_var("txn.last_ms", string.format("%.1f", self.last - self.began))
  end
  if self.tokens then
    txn:set_var("txn.tokens", self.tokens)
  end
  txn:set_var("txn.amiss", self.is_broken and "error" or (self.is_empty or self.tokens == 0) and "empty" or "no")
end

core.register_filter("tokens", Answer, function(class, _)
  return class
end)
