-- Hands a stream of a durable subscription its next events: those whose acknowledgement is late, then new ones.
--
-- KEYS: the stream, what is kept of the subscription.
-- ARGV: its name; since when it stands; who takes them; events at most; bytes that they may take together, except that one alone always may;
--       how long an event waits for its acknowledgement, in ms; how many it may hold; whether it is ordered.
-- Answers in how many ms something may be late (-1: nothing waits for its acknowledgement); then for each event which delivery it is,
-- and its entry. Nothing where there is no such subscription.
local stream, group, taker, count = KEYS[1], ARGV[1], ARGV[3], tonumber(ARGV[4])
local bytes, wait, room, is_ordered = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8] == '1'
local exists = false
if redis.call('HGET', KEYS[2], 'since-us') == ARGV[2] and redis.call('EXISTS', stream) == 1 then
  for _, one in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    exists = exists or one[2] == group
  end
end
if not exists then
  return {}
end
local answer = {-1}
redis.call('XGROUP', 'CREATECONSUMER', stream, group, taker)
for _, one in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  if one[2] == taker then
    room = room - one[4]
  elseif one[4] == 0 and one[6] > 3600000 then
    -- It has left long ago.
    redis.call('XGROUP', 'DELCONSUMER', stream, group, one[2])
  end
end
local function put(attempt, entry)
  answer[#answer + 1] = attempt
  answer[#answer + 1] = entry
  count = count - 1
  for _, part in ipairs(entry[2]) do
    bytes = bytes - #part - 16
  end
end
local late = redis.call('XPENDING', stream, group, 'IDLE', wait, '-', '+', count)
if is_ordered and #late > 0 then
  -- What follows an event that comes again comes again too.
  late = redis.call('XPENDING', stream, group, late[1][1], '+', count)
end
for _, pending in ipairs(late) do
  if bytes <= 0 then
    break
  end
  local is_own = pending[2] == taker
  if is_own or room > 0 then
    local entry = redis.call('XCLAIM', stream, group, taker, is_ordered and 0 or wait, pending[1])[1]
    -- One that was removed meanwhile is nobody's any more.
    if entry and entry[2] then
      put(pending[4] + 1, entry)
      room = is_own and room or room - 1
    end
  end
end
while count > 0 and room > 0 and bytes > 0 do
  local new = redis.call('XREADGROUP', 'GROUP', group, taker, 'COUNT', 1, 'STREAMS', stream, '>')
  if not new then
    break
  end
  put(1, new[1][2][1])
  room = room - 1
end
for _, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', 64)) do
  local left = math.max(1, wait - pending[3])
  if answer[1] < 0 or left < answer[1] then
    answer[1] = left
  end
end
return answer
