-- The rights ($1) on tables ($2, pairwise) that the session's role lacks. Tables that do not exist
-- are left out.
SELECT current_user::text AS who, needed.kind, needed.name
FROM UNNEST($1::text[], $2::text[]) AS needed (kind, name)
WHERE to_regclass(needed.name) IS NOT NULL
  AND NOT has_table_privilege(to_regclass(needed.name), needed.kind)
