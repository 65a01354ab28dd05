{{/* As many as there are where an autoscaler decides, and nothing where nobody knows. */}}
{{- define "asympo.gatewayReplicas" -}}
{{- if not .Values.gateway.autoscaling.enabled }}
{{- .Values.gateway.replicas | int }}
{{- else }}
{{- $name := include "asympo.name" (dict "root" . "component" "gateway") }}
{{- $there := include "asympo.present" (dict "root" . "apiVersion" "apps/v1" "kind" "Deployment" "name" $name) | fromJson }}
{{- with $there.spec }}{{ if hasKey . "replicas" }}{{ max (int .replicas) 1 }}{{ end }}{{ end }}
{{- end }}
{{- end }}

{{/* The pod of the gateway: .root .component .values .own .role .user .isReadOnly as everywhere. */}}
{{- define "asympo.gatewayPod" -}}
{{- $gateway := . }}
{{- $values := .values }}
{{- with .root }}
metadata:
  {{- include "asympo.podMetadata" (merge (dict "files" (include "asympo.gatewayToml" .)) $gateway) | nindent 2 }}
spec:
  {{- include "asympo.podBasics" $gateway | nindent 2 }}
  # Calls in flight are answered, and leased prompts handed back.
  terminationGracePeriodSeconds: {{ add (include "asympo.settings" (dict "root" . "service" "gateway" "values" $values) | fromJson).drain_seconds 20 | int }}
  {{- with include "asympo.affinity" $gateway | fromJson }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.extraInitContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: gateway
      image: {{ include "asympo.image" (dict "root" . "image" $values.image "variant" "cpu") | toJson }}
      imagePullPolicy: {{ .Values.image.pullPolicy | toJson }}
      {{- include "asympo.containerSecurityContext" . | nindent 6 }}
      args: [gateway, --config, /etc/asympo/settings/gateway.toml]
      {{- with include "asympo.envFrom" $gateway | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- include "asympo.environment" $gateway | nindent 6 }}
      ports:
        - name: http
          containerPort: 8090
          protocol: TCP
        {{- if .Values.control.tls.secret }}
        - name: grpc
          containerPort: 50053
          protocol: TCP
        {{- end }}
      {{- include "asympo.probes" $values | nindent 6 }}
      {{- include "asympo.resources" (dict "resources" $values.resources "gpus" 0) | nindent 6 }}
      {{- include "asympo.mounts" $gateway | nindent 6 }}
    {{- with $values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- include "asympo.volumes" $gateway | nindent 2 }}
{{- end }}
{{- end }}
