-- The server may be configured to acknowledge commits before they are on disk. Settings stricter
-- than `on` stay as they are.
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
