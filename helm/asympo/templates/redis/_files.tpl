{{- define "asympo.brokerFiles" -}}
broker.conf: |
  port 6379
  bind * -::*
  dir /data
  # Every user has a password; the default user is off.
  protected-mode no
  # Only `always` keeps every acknowledged group when the pod or its node dies.
  appendonly yes
  appendfsync always
  save ""
  # Unread groups are never evicted: appends are refused instead, and the learner frees.
  maxmemory {{ div (mul (int64 .Values.redis.embedded.memoryMiB) 6) 10 }}mb
  maxmemory-policy noeviction
  tcp-keepalive 60
  # No value that anybody sends is larger than the largest record.
  proto-max-bulk-len 32mb
users.acl: |
  {{- include "asympo.acl" . | trim | nindent 2 }}
start_broker.sh: |
  {{- .Files.Get "files/start_broker.sh" | trim | nindent 2 }}
{{- end }}
