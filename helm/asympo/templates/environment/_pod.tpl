{{/* The pod that plays: .root .component .values .own as everywhere. It has nothing of the broker. */}}
{{- define "asympo.environmentPod" -}}
{{- $environment := . }}
{{- $values := .values }}
{{- with .root }}
{{- $hasVolume := empty .Values.checkpoints.objectStore.url }}
metadata:
  {{- include "asympo.podMetadata" (merge (dict "files" (include "asympo.learnerToml" .)) $environment) | nindent 2 }}
spec:
  {{- include "asympo.podBasics" $environment | nindent 2 }}
  terminationGracePeriodSeconds: 30
  {{- with include "asympo.affinity" $environment | fromJson }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.extraInitContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: environment
      image: {{ include "asympo.image" (dict "root" . "image" $values.image "variant" "cpu") | toJson }}
      imagePullPolicy: {{ .Values.image.pullPolicy | toJson }}
      {{- include "asympo.containerSecurityContext" . | nindent 6 }}
      args:
        - environment
        - play
        - /etc/asympo/settings/learner.toml
        - --gateway
        - {{ printf "http://%s-gateway:8090" (include "asympo.fullname" .) | toJson }}
        - --groups
        - {{ toJson $values.groups | toJson }}
        {{- with $values.python }}
        - --python
        - {{ . | toJson }}
        {{- end }}
        # Neither a run that has ended nor rows that the learner's pod has yet to write are a reason to start again.
        - --stay
      {{- with include "asympo.envFrom" $environment | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- include "asympo.variables" (dict "own" (include "asympo.playerVariables" .) "extra" $values.extraEnv) | nindent 6 }}
      {{- include "asympo.resources" (dict "resources" $values.resources "gpus" 0) | nindent 6 }}
      volumeMounts:
        - name: settings
          mountPath: /etc/asympo/settings
          readOnly: true
        {{- if $hasVolume }}
        - name: checkpoints
          mountPath: /checkpoints
          readOnly: true
        {{- end }}
        - name: temporary
          mountPath: /tmp
        - name: cache
          mountPath: /cache
        {{- with include "asympo.dataMounts" . | trim }}
        {{- . | nindent 8 }}
        {{- end }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- with $values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: settings
      configMap:
        name: {{ printf "%s-learner-settings" (include "asympo.fullname" .) | toJson }}
    {{- if $hasVolume }}
    - name: checkpoints
      persistentVolumeClaim:
        claimName: {{ include "asympo.checkpointsClaim" . | toJson }}
    {{- end }}
    {{- range list "temporary" "cache" }}
    - name: {{ . | toJson }}
      emptyDir:
        sizeLimit: {{ include "asympo.quantity" $values.cacheSize }}
    {{- end }}
    {{- with include "asympo.dataVolumes" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- end }}

{{/* Those of the environment, and the token that the gateway asks for. */}}
{{- define "asympo.playerVariables" -}}
{{- include "asympo.environmentVariables" . }}
- name: ASYMPO_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.environment.tokenFrom.secret | toJson }}
      key: {{ .Values.environment.tokenFrom.key | toJson }}
{{- end }}
