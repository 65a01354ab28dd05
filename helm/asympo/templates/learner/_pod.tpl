{{/* The pod of the learner. .root, and .isWorker for the pods of a LeaderWorkerSet that do not lead. */}}
{{- define "asympo.learnerPod" -}}
{{- $isWorker := .isWorker }}
{{- with .root }}
{{- $values := .Values.learner }}
{{- $learner := dict "root" . "component" "learner" "values" $values "own" "learner" "role" "learner" "user" .Values.redis.auth.learnerUser "isReadOnly" false }}
metadata:
  {{- include "asympo.podMetadata" (merge (dict "files" (include "asympo.learnerToml" .)) $learner) | nindent 2 }}
spec:
  {{- include "asympo.podBasics" $learner | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "asympo.learnerGraceSeconds" . | int }}
  {{- with include "asympo.affinity" $learner | fromJson }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $hasModel := not (empty .Values.model.download.repository) }}
  {{- $hasRows := include "asympo.environmentRows" . }}
  {{- if or $hasModel $hasRows $values.extraInitContainers }}
  initContainers:
    {{- if $hasModel }}
    {{- include "asympo.fetchModel" $learner | nindent 4 }}
    {{- end }}
    {{- if $hasRows }}
    {{- include "asympo.writeRows" $learner | nindent 4 }}
    {{- end }}
    {{- with $values.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    - name: learner
      image: {{ include "asympo.image" (dict "root" . "image" $values.image "variant" (include "asympo.variant" $values)) | toJson }}
      imagePullPolicy: {{ .Values.image.pullPolicy | toJson }}
      {{- include "asympo.containerSecurityContext" . | nindent 6 }}
      {{- include "asympo.learnerCommand" . | nindent 6 }}
      {{- with include "asympo.envFrom" $learner | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- include "asympo.environment" $learner | nindent 6 }}
      ports:
        - name: http
          containerPort: 8080
          protocol: TCP
        {{- if .Values.control.tls.secret }}
        - name: grpc
          containerPort: 50051
          protocol: TCP
        {{- end }}
      {{- with include "asympo.learnerProbes" (dict "root" . "isWorker" $isWorker) }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- include "asympo.resources" $values | nindent 6 }}
      {{- include "asympo.mounts" $learner | nindent 6 }}
    {{- with $values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- include "asympo.volumes" $learner | nindent 2 }}
{{- end }}
{{- end }}

{{/* The container that brings the model. It sees what the learner's own sees, such as the certificates of a company. */}}
{{- define "asympo.fetchModel" -}}
{{- $download := .root.Values.model.download -}}
- name: fetch-model
  image: {{ include "asympo.image" (dict "root" .root "image" .values.image "variant" (include "asympo.variant" .values)) | toJson }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy | toJson }}
  {{- include "asympo.containerSecurityContext" .root | nindent 2 }}
  command: [python, /etc/asympo/settings/fetch_model.py]
  args:
    - {{ $download.repository | toJson }}
    - {{ $download.revision | toJson }}
    - {{ include "asympo.modelPath" .root | toJson }}
  {{- with include "asympo.envFrom" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- include "asympo.variables" (dict "own" (include "asympo.fetchEnvironment" $download) "extra" .values.extraEnv) | nindent 2 }}
  {{- include "asympo.resources" (dict "resources" $download.resources "gpus" 0) | nindent 2 }}
  volumeMounts:
    - name: settings
      mountPath: /etc/asympo/settings
      readOnly: true
    - name: checkpoints
      mountPath: /checkpoints
    {{- if not .root.Values.checkpoints.objectStore.url }}
    - name: copies
      mountPath: /copies
    {{- end }}
    - name: temporary
      mountPath: /tmp
    {{- with .values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "asympo.fetchEnvironment" -}}
- name: HOME
  value: /tmp
{{- with .endpoint }}
- name: HF_ENDPOINT
  value: {{ . | toJson }}
{{- end }}
{{- if .token.secret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .token.secret | toJson }}
      key: {{ .token.key | toJson }}
{{- end }}
{{- end }}
