{{/* Processes in each pod of the learner: one for each GPU unless told otherwise. */}}
{{- define "asympo.ranksPerPod" -}}
{{- .Values.learner.ranks | default (max 1 (int .Values.learner.gpus)) }}
{{- end }}

{{- define "asympo.learnerIsSeveral" -}}
{{- if or (gt (int .Values.learner.nodes) 1) (gt (include "asympo.ranksPerPod" . | int) 1) }}yes{{ end }}
{{- end }}

{{/*
How the learner's container starts. Alone it is the image's own command; several ranks are started by torchrun.
A rank that is lost ends all: within a pod torchrun starts them anew, across pods their containers do.
*/}}
{{- define "asympo.learnerCommand" -}}
{{- $config := list "--config" "/etc/asympo/settings/learner.toml" }}
{{- if not (include "asympo.learnerIsSeveral" .) -}}
args: {{ concat (list "learner") $config | toJson }}
{{- else }}
{{- $common := list "--nproc-per-node" (include "asympo.ranksPerPod" .) "--shutdown-timeout" (sub (include "asympo.learnerGraceSeconds" . | int) 30 | toString) }}
{{- $learner := concat (list "-m" "asympo.learner" "--") $config }}
{{- if eq (int .Values.learner.nodes) 1 -}}
command: [tini, --, torchrun]
args: {{ concat (list "--standalone" "--max-restarts" "3") $common $learner | toJson }}
{{- else }}
{{- $several := list "--nnodes" (int .Values.learner.nodes | toString) "--master-port" "29500" "--max-restarts" "0" }}
{{- if eq .Values.learner.kind "LeaderWorkerSet" -}}
command: [tini, --, torchrun]
args: {{ concat (list "--node-rank" "$(LWS_WORKER_INDEX)" "--master-addr" "$(LWS_LEADER_ADDRESS)") $several $common $learner | toJson }}
{{- else -}}
{{- $name := printf "%s-learner" (include "asympo.fullname" .) -}}
# A StatefulSet's pod knows its number only by its name.
command: [tini, --, sh, -c, 'exec torchrun --node-rank "${POD_NAME##*-}" "$@"', torchrun]
args: {{ concat (list "--master-addr" (printf "%s-0.%s-ranks" $name $name)) $several $common $learner | toJson }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels that choose the pod of the first rank, the only one that answers. */}}
{{- define "asympo.firstRankSelector" -}}
{{- include "asympo.selector" (dict "root" . "component" "learner") }}
{{- if gt (int .Values.learner.nodes) 1 }}
{{- if eq .Values.learner.kind "LeaderWorkerSet" }}
leaderworkerset.sigs.k8s.io/worker-index: "0"
{{- else }}
statefulset.kubernetes.io/pod-name: {{ printf "%s-learner-0" (include "asympo.fullname" .) | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{/* Probes of the learner: by HTTP where every pod answers, else by a script that only asks the first. .root .isWorker */}}
{{- define "asympo.learnerProbes" -}}
{{- $values := .root.Values.learner }}
{{- if eq (int $values.nodes) 1 }}
{{- include "asympo.probes" $values }}
{{- else if eq $values.kind "LeaderWorkerSet" }}
{{- if not .isWorker }}{{ include "asympo.probes" $values }}{{ end }}
{{- else -}}
startupProbe:
  exec: {command: [sh, /etc/asympo/settings/probe_learner.sh, /livez]}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: {{ div (add (int $values.startupSeconds) 9) 10 }}
livenessProbe:
  exec: {command: [sh, /etc/asympo/settings/probe_learner.sh, /livez]}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  exec: {command: [sh, /etc/asympo/settings/probe_learner.sh, /readyz]}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 3
{{- end }}
{{- end }}
