{{/*
Passwords of the broker's users: random ones, made once, at the install, and from then on those of the Secret that the
cluster has. Nothing where no cluster can be asked: every rendering would have other passwords and restart every pod.
*/}}
{{- define "asympo.usersData" -}}
{{- if and (eq .Values.redis.mode "embedded") (not .Values.redis.auth.existingSecret) (include "asympo.isOnline" .) }}
{{- $old := (include "asympo.present" (dict "root" . "apiVersion" "v1" "kind" "Secret" "name" (include "asympo.usersSecret" .)) | fromJson).data | default dict }}
{{- range $role, $key := .Values.redis.auth.keys }}
{{ $key }}: {{ get $old $key | default (randAlphaNum 32 | b64enc) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Kept on .Release so that Secret and annotations see the same random values. */}}
{{- define "asympo.users" -}}
{{- if not (hasKey .Release "brokerUsers") }}
{{- $_ := set .Release "brokerUsers" (include "asympo.usersData" . | trim) }}
{{- end }}
{{- .Release.brokerUsers }}
{{- end }}

{{- define "asympo.usersChecksum" -}}
{{- with include "asympo.users" . }}{{ sha256sum . }}{{ end }}
{{- end }}

{{/*
What each role may do. Generators change what leasing and appending change and only read what the learner
decides (config, policies). Nobody may flush, configure or stop the server.
*/}}
{{- define "asympo.acl" -}}
{{- $common := "-@all +@connection +@read +@write +@scripting -@dangerous -@admin -script -function +info +time +config|get" }}
{{- $changed := list "run" "log" "open" "leases" "deadlines" "answers" "reissue" "wake" "policy_steps" "failures" "set_aside" "bad_policies" "presence" "presence_until" }}
user default off
user health on nopass resetkeys -@all +ping
user learner on #@learner@ ~asympo:* {{ $common }}
user operator on #@operator@ ~asympo:* {{ $common }} +cluster|info +memory|usage +slowlog|get +client|list
user generator on #@generator@ {{ range $changed }}~asympo:{*}:{{ . }} {{ end }}%R~asympo:{*}:config %R~asympo:{*}:policies %R~asympo:{*}:commit {{ $common }}
{{- end }}
