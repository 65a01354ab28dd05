{{/*
Passwords of the broker's users: random ones, made once, at the install, and from then on those of the Secret that the
cluster has. Nothing where no cluster can be asked: every rendering would have other passwords and restart every pod.
*/}}
{{- define "asympo.usersData" -}}
{{- if and (eq .Values.redis.mode "embedded") (not .Values.redis.auth.existingSecret) (include "asympo.isOnline" .) }}
{{- $old := (include "asympo.present" (dict "root" . "apiVersion" "v1" "kind" "Secret" "name" (include "asympo.usersSecret" .)) | fromJson).data | default dict }}
{{- range include "asympo.brokerRoles" . | fromJsonArray }}
{{- $key := get $.Values.redis.auth.keys . }}
{{ $key }}: {{ get $old $key | default (randAlphaNum 32 | b64enc) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Users of the embedded broker, as JSON: an evaluator's and a gateway's only where there is one. */}}
{{- define "asympo.brokerRoles" -}}
{{- $roles := list "learner" "generator" "operator" }}
{{- range list "evaluator" "gateway" }}{{ if (index $.Values .).enabled }}{{ $roles = append $roles . }}{{ end }}{{ end }}
{{- $roles | toJson }}
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
What each role may do, as files/broker-users.json says, which is generated from the code. `@run@` is each run that may use
this broker; the operator's rules name none.
Nobody is the default user, which is off; but Redis 7.0 reads its own log back with its rights, and drops what they forbid.
*/}}
{{- define "asympo.acl" -}}
{{- $runs := prepend (.Values.redis.embedded.moreRuns | default list) .Values.run }}
{{- $rules := .Files.Get "files/broker-users.json" | fromJson }}
user default off allkeys allchannels +@all
user health on nopass resetkeys -@all +ping
{{- range $role := include "asympo.brokerRoles" . | fromJsonArray }}
{{- $patterns := list }}
{{- range $run := $runs }}
{{- range $pattern := (get $rules $role).keys }}
{{- $patterns = append $patterns (replace "@run@" $run $pattern) }}
{{- end }}
{{- end }}
user {{ $role }} on #@{{ $role }}@ resetkeys resetchannels {{ $patterns | uniq | join " " }} {{ (get $rules $role).commands }}
{{- end }}
{{- end }}
