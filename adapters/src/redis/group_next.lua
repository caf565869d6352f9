-- Hands a member of a consumer group its next records: those whose acknowledgement is late, then new ones.
--
-- KEYS: the stream, what is kept of the group.
-- ARGV: the group; the member; records at most; the id behind which the member claims what it holds itself, late or not ('': it does
--       not); ack_wait in ms and max_in_flight of a group of which nothing is kept.
-- Answers since when the group is as it is, its generation, whether anything waits for its acknowledgement, the id behind which the member
-- goes on to claim ('': there is no more); then for each record which delivery it is, and its entry. Nothing where there is no such group.
local stream, group, member, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local exists = false
if redis.call('EXISTS', stream) == 1 then
  for _, one in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    exists = exists or one[2] == group
  end
end
if not exists then
  return {}
end
local kept = redis.call('HMGET', KEYS[2], 'since-us', 'generation', 'ack-wait-ms', 'max-in-flight')
local wait, room = tonumber(kept[3] or ARGV[5]), tonumber(kept[4] or ARGV[6])
local answer = {kept[1] or '0', kept[2] or '1', 0, ''}
redis.call('XGROUP', 'CREATECONSUMER', stream, group, member)
for _, one in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  if one[2] == member then
    room = room - one[4]
  elseif one[4] == 0 and one[6] > 3600000 then
    -- It has left long ago.
    redis.call('XGROUP', 'DELCONSUMER', stream, group, one[2])
  end
end
local function claim(pending, idle)
  local entry = redis.call('XCLAIM', stream, group, member, idle, pending[1])[1]
  -- A record that was removed meanwhile is nobody's any more.
  if entry and entry[2] then
    answer[#answer + 1] = pending[4] + 1
    answer[#answer + 1] = entry
    count = count - 1
  end
end
if ARGV[4] ~= '' then
  local own = redis.call('XPENDING', stream, group, '(' .. ARGV[4], '+', count, member)
  if #own == count then
    answer[4] = own[#own][1]
  end
  for _, pending in ipairs(own) do
    claim(pending, 0)
  end
end
if count > 0 then
  for _, pending in ipairs(redis.call('XPENDING', stream, group, 'IDLE', wait, '-', '+', count)) do
    if pending[2] == member then
      claim(pending, wait)
    elseif room > 0 then
      claim(pending, wait)
      room = room - 1
    end
  end
end
count = math.min(count, room)
if count > 0 then
  local new = redis.call('XREADGROUP', 'GROUP', group, member, 'COUNT', count, 'STREAMS', stream, '>')
  for _, entry in ipairs(new and new[1][2] or {}) do
    answer[#answer + 1] = 1
    answer[#answer + 1] = entry
  end
end
if redis.call('XPENDING', stream, group)[1] > 0 then
  answer[3] = 1
end
return answer
