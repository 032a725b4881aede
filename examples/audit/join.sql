-- Every use of the master key that AWS has recorded, beside what the hosts say about it: who opened the session, from
-- where and why, and which process asked for which key. Uses that no host has recorded come first.
--
--   sqlite3 < join.sql          (3.33 or later)
--
-- in a folder with two files of one JSON object a line:
--   audit.jsonl        iam-kms-wrapper audit --json, of all hosts
--   cloudtrail.jsonl   the records of the trail: gunzip --stdout *.json.gz | jq --compact-output '.Records[]'

CREATE TEMP TABLE audit AS
SELECT value AS event
FROM json_each('[' || replace(trim(readfile('audit.jsonl'), char(10)), char(10), ',') || ']');

CREATE TEMP TABLE trail AS
SELECT value AS record
FROM json_each('[' || replace(trim(readfile('cloudtrail.jsonl'), char(10)), char(10), ',') || ']');

CREATE TEMP TABLE session AS
SELECT json_extract(event, '$.access_key_id') AS access_key_id,
       max(json_extract(event, '$.operator')) AS operator,
       max(json_extract(event, '$.from')) AS origin,
       max(json_extract(event, '$.reason')) AS reason
FROM audit
WHERE json_extract(event, '$.event') IN ('code_taken', 'session_document_taken')
GROUP BY 1;

CREATE TEMP TABLE used AS
SELECT json_extract(event, '$.request_id') AS request_id,
       min(json_extract(event, '$.host')) AS host,
       min(json_extract(event, '$.peer_uid')) AS uid,
       min(json_extract(event, '$.key_id')) AS key_id,
       min(json_extract(event, '$.key_version')) AS key_version
FROM audit
WHERE json_extract(event, '$.request_id') IS NOT NULL
GROUP BY 1;

.headers on
.mode list
.separator " | "
.nullvalue -

SELECT json_extract(record, '$.eventTime') AS time,
       json_extract(record, '$.eventName') AS operation,
       json_extract(record, '$.sourceIPAddress') AS address,
       CASE WHEN used.request_id IS NULL THEN 'NOT RECORDED BY A HOST' ELSE ifnull(host, 'a host') END AS host,
       uid,
       key_id AS key,
       key_version AS version,
       operator,
       origin,
       reason
FROM trail
LEFT JOIN used ON used.request_id = json_extract(record, '$.requestID')
LEFT JOIN session ON session.access_key_id = json_extract(record, '$.userIdentity.accessKeyId')
WHERE json_extract(record, '$.eventSource') = 'kms.amazonaws.com'
  AND json_extract(record, '$.errorCode') IS NULL
  AND json_extract(record, '$.eventName') IN
      ('Decrypt', 'GenerateDataKeyWithoutPlaintext', 'GenerateDataKey', 'ReEncrypt', 'EnableKey', 'DisableKey')
ORDER BY used.request_id IS NOT NULL, time, key_id, key_version;
