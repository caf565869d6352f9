-- A SET that tells what was there, with its expiry.
--
-- KEYS: the key. ARGV: the value, the longest value that is told plus 1, then options of SET.
-- Answers whether the value was stored, the value that was there or nil, and when it would have expired.
local previous, expiry = redis.call('GET', KEYS[1]), redis.call('PEXPIRETIME', KEYS[1])
local value_max = tonumber(ARGV[2])
if previous and #previous > value_max then
  previous = string.sub(previous, 1, value_max)
end
local options = {}
for number = 3, #ARGV do
  options[number - 2] = ARGV[number]
end
local stored = redis.call('SET', KEYS[1], ARGV[1], unpack(options))
return {stored and 1 or 0, previous, expiry}
