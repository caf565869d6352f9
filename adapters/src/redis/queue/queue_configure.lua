-- Says after how many deliveries a message is given up; what has ended already has by the setting of then.
--
-- ARGV: the time; that number, 0: never.
pass()
redis.call('HSET', queue, 'max-deliveries', ARGV[2])
return 1
