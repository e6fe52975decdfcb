-- Tells whether Redis takes writes, and does nothing itself: without flags after `#!lua`, Redis
-- refuses a script before it starts while its disk, memory, replicas or role forbid writes.
-- KEYS 1 meta · Returns 1.
return 1
