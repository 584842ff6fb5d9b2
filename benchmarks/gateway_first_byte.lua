-- What the gateway did before it counted tokens: the time of the first byte, and then the stream passes without Lua.

local FirstByte = { id = "first byte", flags = filter.FLT_CFG_FL_HTX }
FirstByte.__index = FirstByte

local function milliseconds()
  local now = core.now()
  return now.sec * 1000 + now.usec / 1000
end

function FirstByte:new()
  return setmetatable({}, FirstByte)
end

function FirstByte:start_analyze(txn, channel)
  if not channel:is_resp() then
    self.began = milliseconds()
  end
end

function FirstByte:http_headers(txn, message)
  if message.channel:is_resp() then
    filter.register_data_filter(self, message.channel)
  end
end

function FirstByte:http_payload(txn, message)
  if message:input() > 0 then
    txn:set_var("txn.ttft_ms", string.format("%.1f", milliseconds() - self.began))
    filter.unregister_data_filter(self, message.channel)
  end
end

core.register_filter("tokens", FirstByte, function(class, _)
  return class
end)
