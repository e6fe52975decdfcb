-- A server may be set to acknowledge commits before they are on disk. Stricter settings than `on` stay as they are.
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
