-- Appends a record, if the newest one is the one that is expected.
--
-- KEYS: the stream. ARGV: the id that is expected; the record's fields and their values.
-- Answers the record's id; or the newest id, in a list, where it is another one ('none': there is no record).
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
newest = newest and newest[1] or 'none'
if newest ~= ARGV[1] then
  return {newest}
end
return redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
