-- Gives back what a stream of a durable subscription has been handed and nobody has acknowledged: it is late from now on.
--
-- KEYS: the stream. ARGV: the subscription; who has it.
local stream, group, taker = KEYS[1], ARGV[1], ARGV[2]
while true do
  local some = redis.call('XPENDING', stream, group, '-', '+', 100, taker)
  for _, pending in ipairs(some) do
    redis.call('XCLAIM', stream, group, 'nobody', 0, pending[1], 'IDLE', 31536000000, 'RETRYCOUNT', pending[4], 'JUSTID')
  end
  if #some < 100 then
    break
  end
end
redis.call('XGROUP', 'DELCONSUMER', stream, group, taker)
return 1
