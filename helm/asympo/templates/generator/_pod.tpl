{{/*
The pod of what samples, a generator or the evaluator: .root .component .values .own .role .user .isReadOnly as everywhere,
and .toml, .port, .graceSeconds.
*/}}
{{- define "asympo.samplingPod" -}}
metadata:
  {{- $more := ternary (dict "asympo/pool" (include "asympo.name" (omit . "pool"))) dict (and (eq .component "generator") (empty .pool)) }}
  {{- include "asympo.podMetadata" (merge (dict "files" .toml "more" $more) .) | nindent 2 }}
spec:
  {{- include "asympo.podBasics" $ | nindent 2 }}
  # SIGTERM drains: what is in flight is finished or handed back, then the engine is closed.
  terminationGracePeriodSeconds: {{ .graceSeconds | int }}
  {{- with include "asympo.affinity" . | fromJson }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- range . }}
    - {{- toYaml . | nindent 6 }}
      {{- if not .labelSelector }}
      labelSelector:
        matchLabels:
          {{- include "asympo.selector" $ | nindent 10 }}
      {{- end }}
    {{- end }}
  {{- end }}
  {{- with .values.extraInitContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component | toJson }}
      image: {{ include "asympo.image" (dict "root" .root "image" .values.image "variant" (include "asympo.variant" .values)) | toJson }}
      imagePullPolicy: {{ $.root.Values.image.pullPolicy | toJson }}
      {{- include "asympo.containerSecurityContext" $ | nindent 6 }}
      args: [{{ .component }}, --config, {{ printf "/etc/asympo/settings/%s.toml" .component | toJson }}]
      {{- with include "asympo.envFrom" $ | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- include "asympo.environment" $ | nindent 6 }}
      ports:
        - name: http
          containerPort: {{ .port | int }}
          protocol: TCP
        {{- if and (eq .component "generator") .root.Values.control.tls.secret }}
        - name: grpc
          containerPort: 50052
          protocol: TCP
        {{- end }}
      {{- include "asympo.probes" .values | nindent 6 }}
      {{- include "asympo.resources" .values | nindent 6 }}
      {{- include "asympo.mounts" $ | nindent 6 }}
    {{- with .values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- include "asympo.volumes" $ | nindent 2 }}
{{- end }}
