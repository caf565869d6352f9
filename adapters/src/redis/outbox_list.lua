-- Tells which messages of transactions wait to be relayed, without their content.
--
-- KEYS: the outbox. ARGV: the id behind which it begins; how many at most.
-- Answers for each its id, when it was committed, where it goes (namespace and name), and its ordering key.
local answer = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])) do
  local facts = {}
  for at = 1, #entry[2], 2 do
    facts[entry[2][at]] = entry[2][at + 1]
  end
  answer[#answer + 1] = {
    entry[1], facts['sent-at-us'] or '0', facts['target-namespace'] or '', facts['target'] or '', facts['ordering-key'] or ''
  }
end
return answer
