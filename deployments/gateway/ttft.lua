-- Stamps the first byte of the answer's body into txn.ttft_ms. HAProxy's own %Tr stops at the headers, which
-- servers of event streams send long before the first token. Other answers come all at once: they have no first token.

local TimeToFirstToken = { id = "time to first token", flags = filter.FLT_CFG_FL_HTX }
TimeToFirstToken.__index = TimeToFirstToken

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec / 1000
end

function TimeToFirstToken:new()
  return setmetatable({}, TimeToFirstToken)
end

function TimeToFirstToken:start_analyze(txn, channel)
  if not channel:is_resp() then
    self.began = milliseconds()
  end
end

function TimeToFirstToken:http_headers(txn, message)
  if not message.channel:is_resp() then
    return
  end
  local types = message:get_headers()["content-type"]
  if types and types[0]:find("text/event-stream", 1, true) == 1 then
    filter.register_data_filter(self, message.channel)
  end
end

function TimeToFirstToken:http_payload(txn, message)
  -- It is called for the headers as well.
  if message:input() == 0 then
    return
  end
  txn:set_var("txn.ttft_ms", string.format("%.1f", milliseconds() - self.began))
  -- Once is enough: the rest of the stream passes without Lua.
  filter.unregister_data_filter(self, message.channel)
end

core.register_filter("ttft", TimeToFirstToken, function(class, _)
  return class
end)
