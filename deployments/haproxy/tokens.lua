-- Looks into the body of an answer: when its first token came, when its last one, how many there were, and whether it
-- is a good one, by answers.lua. HAProxy's own %Tr stops at the headers, which servers of event streams send long before
-- the first token; and a stream that says nothing, or ends in an error, is a good answer to HAProxy.

local Answer = require("answers")

local Tokens = { id = "tokens of an answer", flags = filter.FLT_CFG_FL_HTX }
Tokens.__index = Tokens

-- Of what a user has yet to be sent; where it is more, it is the user who is slow, and the replica waits as well.
local MOST_BEHIND_BYTES = 32768

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec / 1000
end

-- Whatever is in an answer, its user gets it: where looking into it fails, that is said and nothing else happens.
function Tokens:try(act, ...)
  if self.is_unread then
    return
  end
  local did, problem = pcall(act, self, ...)
  if not did then
    self.is_unread = true
    core.Alert("an answer could not be looked into: " .. tostring(problem))
  end
end

function Tokens:new()
  return setmetatable({}, Tokens)
end

-- Of the request once it is here, which is before it waits for a server; of the answer once a server is found.
function Tokens:start_analyze(_, channel)
  if channel:is_resp() then
    self.found = milliseconds()
  end
end

function Tokens:http_headers(txn, message)
  if message.channel:is_resp() then
    self:try(self.begin_answer, txn, message)
    return
  end
  self.began = milliseconds()
  if not message:eom() then
    -- Longer than the buffer: the rest passes through while the user sends it.
    self.is_uploading = true
    filter.register_data_filter(self, message.channel)
  end
end

-- No replica is asked to pack anything, and what is packed all the same could be anything.
local function is_packed(headers)
  for _, encoding in pairs(headers["content-encoding"] or {}) do
    if encoding ~= "" and encoding:lower() ~= "identity" then
      return true
    end
  end
  return false
end

function Tokens:begin_answer(txn, message)
  local status = tonumber(message:get_stline().code) or 0
  if status >= 400 then
    return
  end
  local headers = message:get_headers()
  self.is_open_ended = not headers["content-length"] and not headers["transfer-encoding"]
  local type = headers["content-type"] and headers["content-type"][0]:lower() or ""
  local is_stream, is_json = type:find("^text/event%-stream") ~= nil, type:find("^application/json") ~= nil
  local answer = Answer.new(txn:get_var("txn.kind"), is_stream)
  if status < 200 or status > 299 or is_packed(headers) then
    -- Elsewhere is no answer either, nor is what HTTP does not know.
    self.is_stray = answer.generates
  elseif is_stream then
    self.answer, self.look = answer, self.events
  elseif is_json then
    self.answer, self.look = answer, self.whole
  elseif answer.generates then
    self.is_stray = true
  end
  if self.look then
    filter.register_data_filter(self, message.channel)
  end
end

function Tokens:http_payload(_, message)
  if not message.channel:is_resp() then
    return
  end
  -- It is called for the headers and for the end as well, where there is no body.
  local body = message:body()
  if body and #body > 0 then
    self:try(self.look, body, message)
  end
end

-- What the user took to send the rest of a long request is not the replica's time.
function Tokens:http_end(txn, message)
  if message.channel:is_resp() then
    self.is_whole = true
    -- Of an answer that tells no length HAProxy makes an end where its user goes.
    self.is_left = self.is_open_ended and not self.is_uploading and not txn.req:may_recv()
  elseif self.is_uploading and not self.first then
    self.began = self.began + milliseconds() - (self.found or milliseconds())
  end
end

function Tokens:whole(body, message)
  if not self.answer:keep(body) then
    filter.unregister_data_filter(self, message.channel)
  end
end

function Tokens:events(body, message)
  self.is_held = self.is_held or message:output() > MOST_BEHIND_BYTES
  local before = self.answer.tokens
  if not self.answer:read(body) then
    filter.unregister_data_filter(self, message.channel)
  end
  if self.answer.tokens > before then
    self.last = milliseconds()
    self.first = self.first or self.last
  end
end

function Tokens:judge(txn)
  local amiss, error_status = self.is_stray and "error" or "no", nil
  local is_all_here = self.is_whole and not self.is_left
  if self.answer and (self.answer.is_stream or is_all_here or self.answer.is_long) then
    amiss, error_status = self.answer:verdict()
    if self.answer.is_stream then
      txn:set_var("txn.tokens", self.answer.tokens)
    end
  end
  txn:set_var("txn.amiss", amiss)
  if error_status then
    txn:set_var("txn.error_status", error_status)
  end
end

-- HAProxy writes the log line after it, however the answer ended. Only numbers and fixed words go there.
function Tokens:end_analyze(txn, channel)
  if not channel:is_resp() then
    return
  end
  self:try(self.judge, txn)
  if self.is_whole and not self.is_left then
    txn:set_var("txn.whole", 1)
  end
  if self.first then
    txn:set_var("txn.ttft_ms", string.format("%.1f", math.max(self.first - self.began, 0)))
  end
  if self.last and not self.is_held then
    txn:set_var("txn.last_ms", string.format("%.1f", math.max(self.last - self.began, 0)))
  end
  if self.is_unread then
    -- No word that is known: who reads the log will say that a request is missing.
    txn:set_var("txn.amiss", "unread")
  end
end

core.register_filter("tokens", Tokens, function(class, _)
  return class
end)
