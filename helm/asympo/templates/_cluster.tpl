{{/* What the cluster holds, asked here and nowhere else. `helm template` and Argo CD ask none, and get nothing. */}}

{{/* One object as JSON, {} where there is none. .apiVersion .kind .namespace .name */}}
{{- define "asympo.find" -}}
{{- lookup .apiVersion .kind .namespace .name | default dict | toJson }}
{{- end }}

{{/*
Whether a real cluster is asked: every namespace has this ConfigMap. A namespace that Helm is about to create has nothing
yet; who may create one may look into another. Only real clusters have an aggregation layer.
*/}}
{{- define "asympo.isOnline" -}}
{{- $wanted := dict "apiVersion" "v1" "kind" "ConfigMap" "name" "kube-root-ca.crt" }}
{{- if include "asympo.find" (set $wanted "namespace" .Release.Namespace) | fromJson -}}
yes
{{- else if include "asympo.isForCluster" . }}
{{- if include "asympo.find" (set $wanted "namespace" "default") | fromJson }}yes{{ end }}
{{- end }}
{{- end }}

{{/* Whether it is rendered for a real cluster, by whoever: its kinds are known. */}}
{{- define "asympo.isForCluster" -}}
{{- if .Capabilities.APIVersions.Has "apiregistration.k8s.io/v1" }}yes{{ end }}
{{- end }}

{{/* An object of this release's namespace. .root .apiVersion .kind .name */}}
{{- define "asympo.present" -}}
{{- include "asympo.find" (dict "apiVersion" .apiVersion "kind" .kind "namespace" .root.Release.Namespace "name" .name) }}
{{- end }}

{{/* The spec of the learner's StatefulSet that is there. */}}
{{- define "asympo.presentLearner" -}}
{{- $there := include "asympo.present" (dict "root" . "apiVersion" "apps/v1" "kind" "StatefulSet" "name" (printf "%s-learner" (include "asympo.fullname" .))) | fromJson }}
{{- $there.spec | default dict | toJson }}
{{- end }}
