{{/* Names and labels. A component is one of learner, generator, redis, test. */}}

{{- define "asympo.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "asympo.name" -}}
{{- printf "%s-%s" (include "asympo.fullname" .root) .component }}
{{- end }}

{{- define "asympo.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "asympo.releaseSelector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "asympo.labels" -}}
{{ include "asympo.selector" . }}
app.kubernetes.io/part-of: asympo
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "asympo.metadata" -}}
name: {{ include "asympo.name" . }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "asympo.labels" . | nindent 2 }}
{{- end }}

{{- define "asympo.serviceAccountName" -}}
{{- $account := .values.serviceAccount }}
{{- if $account.name }}{{ $account.name }}{{ else if $account.create }}{{ include "asympo.name" . }}{{ else }}default{{ end }}
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

{{/* Priority class of a component: .values and .own, the key under priorityClasses. */}}
{{- define "asympo.priorityClassName" -}}
{{- if .values.priorityClassName }}
{{- .values.priorityClassName }}
{{- else if .root.Values.priorityClasses.create }}
{{- printf "%s-%s-%s" .root.Release.Namespace (include "asympo.fullname" .root) .own }}
{{- end }}
{{- end }}
