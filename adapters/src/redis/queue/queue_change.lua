-- Has a delivery end at another time.
--
-- ARGV: the time; 'extend' or 'release'; the message's number, and which delivery of it; until when it is leased, or from when on it may be
--       delivered again.
-- Answers whether that delivery stood.
tell()
local number, moment = ARGV[3], ARGV[5]
if not is_held(number, ARGV[4]) then
  return 0
end
if ARGV[2] == 'extend' then
  redis.call('ZADD', leased, moment, number)
elseif is_used_up(number, deliveries_max()) then
  give_up(number, 'MAX_DELIVERIES', ARGV[1])
else
  if tonumber(moment) > now then
    redis.call('ZADD', later, moment, number)
  end
  free(number)
end
return 1
