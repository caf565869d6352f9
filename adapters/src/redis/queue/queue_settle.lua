-- Ends deliveries for good.
--
-- ARGV: the time; 'acknowledge' or 'reject'; why they are rejected; for each its number, and which delivery of it.
-- Answers for each whether that stood.
local answer = {}
for at = 4, #ARGV, 2 do
  -- Others may be in line then.
  if redis.call('HEXISTS', message(ARGV[at]), 'ordering-key') == 1 then
    tell()
    break
  end
end
for at = 4, #ARGV, 2 do
  local number, stands = ARGV[at], 0
  if is_held(number, ARGV[at + 1]) then
    stands = 1
    if ARGV[2] == 'reject' then
      give_up(number, ARGV[3], ARGV[1])
    else
      remove(number)
    end
  end
  answer[#answer + 1] = stands
end
return answer
