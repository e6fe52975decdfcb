-- Which of these rights ($1) on these tables ($2, pairwise) the session's role does not have. A table that is not there is
-- left out.
SELECT current_user::text AS who, needed.kind, needed.name
FROM UNNEST($1::text[], $2::text[]) AS needed (kind, name)
WHERE to_regclass(needed.name) IS NOT NULL
  AND NOT has_table_privilege(to_regclass(needed.name), needed.kind)
