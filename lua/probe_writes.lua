-- Does Redis take writes? Does nothing: Redis refuses, before it starts, a script that might write (after `#!lua`, without flags)
-- while its disk, its memory, its replicas or its role forbid that.
-- KEYS 1 meta · Returns 1.
return 1
