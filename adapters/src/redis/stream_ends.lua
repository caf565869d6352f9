-- The last id of each stream: nothing stands for a key of another type, 0-0 for one that is not there.
--
-- KEYS: the streams.
local answer = {}
for number, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' then
    answer[number] = '0-0'
  elseif kind == 'stream' then
    local info = redis.call('XINFO', 'STREAM', key)
    for at = 1, #info, 2 do
      if info[at] == 'last-generated-id' then
        answer[number] = info[at + 1]
      end
    end
  else
    answer[number] = ''
  end
end
return answer
