{{/* The pod of the learner. .root, and .isWorker for the pods of a LeaderWorkerSet that do not lead. */}}
{{- define "asympo.learnerPod" -}}
{{- $isWorker := .isWorker }}
{{- with .root }}
{{- $values := .Values.learner }}
{{- $learner := dict "root" . "component" "learner" "values" $values "own" "learner" "role" "learner" "user" .Values.redis.auth.learnerUser "isReadOnly" false }}
metadata:
  labels:
    {{- include "asympo.labels" $learner | nindent 4 }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/settings: {{ include "asympo.learnerToml" . | sha256sum }}
    {{- with include "asympo.usersChecksum" . }}
    checksum/broker-users: {{ . }}
    {{- end }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "asympo.podBasics" $learner | nindent 2 }}
  terminationGracePeriodSeconds: {{ include "asympo.learnerGraceSeconds" . }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.model.download }}
  {{- if .repository }}
  initContainers:
    - name: fetch-model
      image: {{ include "asympo.image" (dict "root" $.root "image" $values.image "variant" (include "asympo.variant" $values)) }}
      imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
      {{- include "asympo.containerSecurityContext" $.root | nindent 6 }}
      command: [python, /etc/asympo/settings/fetch_model.py]
      args:
        - {{ .repository | quote }}
        - {{ .revision | quote }}
        - {{ include "asympo.modelPath" $.root }}
      env:
        - name: HOME
          value: /tmp
        {{- if .token.secret }}
        - name: HF_TOKEN
          valueFrom:
            secretKeyRef:
              name: {{ .token.secret }}
              key: {{ .token.key }}
        {{- end }}
        {{- with $values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      resources:
        requests: {cpu: 500m, memory: 1Gi}
        limits: {memory: 2Gi}
      volumeMounts:
        - name: settings
          mountPath: /etc/asympo/settings
          readOnly: true
        - name: checkpoints
          mountPath: /checkpoints
        - name: temporary
          mountPath: /tmp
  {{- end }}
  {{- end }}
  containers:
    - name: learner
      image: {{ include "asympo.image" (dict "root" . "image" $values.image "variant" (include "asympo.variant" $values)) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- include "asympo.containerSecurityContext" . | nindent 6 }}
      {{- include "asympo.learnerCommand" . | nindent 6 }}
      {{- include "asympo.environment" $learner | nindent 6 }}
        {{- if gt (int $values.nodes) 1 }}
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        {{- end }}
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
  {{- include "asympo.volumes" $learner | nindent 2 }}
{{- end }}
{{- end }}
