-- Takes messages in, in their order.
--
-- ARGV: the time; for each message when it is due, when it expires ('': never), its ordering key ('': none), how many parts its fields and
--       their values are, and these.
tell()
drop_expired(16)
local at = 2
while at <= #ARGV do
  local due, expiry, key, parts = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local number = next_number()
  redis.call('HSET', message(number), unpack(ARGV, at + 4, at + 3 + parts))
  enter(number, key ~= '' and key, expiry ~= '' and expiry, due)
  at = at + 4 + parts
end
return 1
