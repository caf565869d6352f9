-- Publishes events, each just behind what is beside it: nothing comes in between, whoever else publishes.
--
-- ARGV: the channel of what is beside them, their own, then for each event what is beside it and its payload.
-- Answers how many they were.
for at = 3, #ARGV, 2 do
  redis.call('PUBLISH', ARGV[1], ARGV[at])
  redis.call('PUBLISH', ARGV[2], ARGV[at + 1])
end
return (#ARGV - 2) / 2
