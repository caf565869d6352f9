-- Leases messages that are in line.
--
-- ARGV: the time; messages at most; until when; bytes of an answer, which the first may exceed; what tells this call from others.
-- Answers for each its number, which delivery of it this is, and its fields.
local wanted, lease_until, room = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local answer = {}
pass()
for _, number in ipairs(redis.call('ZRANGE', ready, 0, wanted - 1)) do
  local fields = redis.call('HGETALL', message(number))
  local has_expired = #fields == 0
  for at = 1, #fields, 2 do
    has_expired = has_expired or fields[at] == 'expires-at-us' and tonumber(fields[at + 1]) <= now
  end
  if has_expired then
    -- Or somebody has deleted it by hand.
    remove(number)
  else
    room = room - bytes_of(fields)
    if room < 0 and #answer > 0 then
      break
    end
    local attempt = redis.call('HINCRBY', message(number), 'attempts', 1)
    redis.call('HSET', message(number), 'lease', attempt .. '-' .. ARGV[5])
    redis.call('ZADD', leased, lease_until, number)
    redis.call('ZREM', ready, number)
    redis.call('ZREM', expires, number)
    answer[#answer + 1] = number
    answer[#answer + 1] = attempt
    answer[#answer + 1] = fields
  end
end
return answer
