{{/* Names and labels. A component is one of learner, generator, gateway, evaluator, environment, redis, test; .pool names a pool of generators. */}}

{{/*
At most 40 characters, so that every name made of it stays within what Kubernetes allows. A name that had to be changed
for that, or that would be no name of a Service, ends in a digest of what it was: two of them never become one.
*/}}
{{- define "asympo.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $wanted := .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) }}
{{- $usable := regexReplaceAll "^([0-9])" ($wanted | replace "." "-") "r${1}" }}
{{- if and (eq $usable $wanted) (le (len $wanted) 40) }}
{{- $wanted }}
{{- else }}
{{- printf "%s-%s" ($usable | trunc 31 | trimSuffix "-") (sha256sum $wanted | trunc 8) }}
{{- end }}
{{- end }}

{{- define "asympo.name" -}}
{{- $name := printf "%s-%s" (include "asympo.fullname" .root) .component }}
{{- with .pool }}{{ $name = printf "%s-%s" $name . }}{{ end }}
{{- $name }}
{{- end }}

{{- define "asympo.selector" -}}
{{ include "asympo.releaseSelector" .root }}
app.kubernetes.io/component: {{ .component | toJson }}
{{- if .pool }}
asympo/pool: {{ include "asympo.name" . | toJson }}
{{- end }}
{{- end }}

{{- define "asympo.releaseSelector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | toJson }}
app.kubernetes.io/instance: {{ .Release.Name | toJson }}
{{- end }}

{{/* Ours, then .more, then `commonLabels`, each key once. */}}
{{- define "asympo.labels" -}}
{{- $ours := include "asympo.ownLabels" . | fromYaml }}
{{- toYaml (merge $ours (deepCopy (.more | default dict)) (.root.Values.commonLabels | default dict)) }}
{{- end }}

{{- define "asympo.ownLabels" -}}
{{ include "asympo.selector" . }}
app.kubernetes.io/part-of: asympo
app.kubernetes.io/version: {{ .root.Chart.AppVersion | toJson }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | toJson }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | toJson }}
{{- end }}

{{/*
Name, labels and annotations of an object. Beside .root .component .pool: .name where it is not the component's, .more
labels, .annotations, and .isClusterWide for what has no namespace.
*/}}
{{- define "asympo.metadata" -}}
name: {{ .name | default (include "asympo.name" .) | toJson }}
{{- if not .isClusterWide }}
namespace: {{ .root.Release.Namespace | toJson }}
{{- end }}
labels:
  {{- include "asympo.labels" . | nindent 2 }}
{{- with merge (deepCopy (.annotations | default dict)) (.root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "asympo.serviceAccountName" -}}
{{- $account := .values.serviceAccount }}
{{- if $account.name }}{{ $account.name }}{{ else if $account.create }}{{ include "asympo.name" (omit . "pool") }}{{ else }}default{{ end }}
{{- end }}

{{- define "asympo.checkpointsClaim" -}}
{{- .Values.checkpoints.existingClaim | default (printf "%s-checkpoints" (include "asympo.fullname" .)) }}
{{- end }}

{{- define "asympo.usersSecret" -}}
{{- if .Values.redis.auth.existingSecret }}
{{- .Values.redis.auth.existingSecret }}
{{- else if eq .Values.redis.mode "embedded" }}
{{- printf "%s-broker-users" (include "asympo.fullname" .) }}
{{- end }}
{{- end }}

{{/* Priority class of a component: .values and .own, the key under priorityClasses. Its value is in the name, since no upgrade may change it. */}}
{{- define "asympo.priorityClassName" -}}
{{- if .values.priorityClassName }}
{{- .values.priorityClassName }}
{{- else if .root.Values.priorityClasses.create }}
{{- printf "%s-%s-%s-%d" .root.Release.Namespace (include "asympo.fullname" .root) .own (int64 (index .root.Values.priorityClasses .own)) }}
{{- end }}
{{- end }}

{{/*
The generators as a JSON list of (pool, values): one without a name, or one for each pool, whose values lie over those of
`generator`.
*/}}
{{- define "asympo.generators" -}}
{{- $all := list }}
{{- $common := omit .Values.generator "pools" }}
{{- if .Values.generator.enabled }}
{{- range $pool, $own := .Values.generator.pools }}
{{- $all = append $all (dict "pool" $pool "values" (mergeOverwrite (deepCopy $common) (deepCopy $own))) }}
{{- end }}
{{- $all = $all | default (list (dict "pool" "" "values" $common)) }}
{{- end }}
{{- $all | toJson }}
{{- end }}
