{{/* Parts of pods. */}}

{{/* Image: .image, and .variant for the tag when none is given. */}}
{{- define "asympo.image" -}}
{{- $name := .image.repository }}
{{- with .root.Values.image.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end }}
{{- if .image.digest }}
{{- printf "%s@%s" $name .image.digest }}
{{- else }}
{{- printf "%s:%s" $name (.image.tag | default (printf "%s-%s" .root.Chart.AppVersion .variant)) }}
{{- end }}
{{- end }}

{{- define "asympo.variant" -}}
{{- ternary "cpu" "cuda" (eq (int .gpus) 0) }}
{{- end }}

{{/* What every pod of ours says about itself. .component .values .own */}}
{{- define "asympo.podBasics" -}}
serviceAccountName: {{ include "asympo.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with include "asympo.priorityClassName" . }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{ include "asympo.podSecurityContext" .root }}
{{- end }}

{{- define "asympo.podSecurityContext" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .Values.podSecurity.userId }}
  runAsGroup: {{ .Values.podSecurity.groupId }}
  fsGroup: {{ .Values.podSecurity.groupId }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "asympo.containerSecurityContext" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/*
Resources with the GPUs among the limits. Quantities are text: the server-side apply of older clusters, which
Helm 4 uses, refuses numbers.
*/}}
{{- define "asympo.resources" -}}
{{- $resources := deepCopy .resources }}
{{- if gt (int .gpus) 0 }}
{{- $_ := set $resources "limits" (set ($resources.limits | default dict) .gpuResource (int .gpus)) }}
{{- end -}}
{{- range list "requests" "limits" }}
{{- $amounts := index $resources . | default dict }}
{{- range $name, $amount := $amounts }}
{{- $_ := set $amounts $name (toString $amount) }}
{{- end }}
{{- end -}}
resources:
  {{- toYaml $resources | nindent 2 }}
{{- end }}

{{/* Environment: user and password of the broker by .role, where libraries may write. */}}
{{- define "asympo.environment" -}}
{{- $external := .root.Values.redis.external -}}
env:
  - name: HOME
    value: /tmp
  - name: XDG_CACHE_HOME
    value: /cache
  - name: HF_HOME
    value: /cache/huggingface
  - name: HF_HUB_OFFLINE
    value: "1"
  - name: TORCHINDUCTOR_CACHE_DIR
    value: /cache/inductor
  - name: TRITON_CACHE_DIR
    value: /cache/triton
  {{- if and (eq .root.Values.redis.mode "external") $external.urlFrom.secret }}
  - name: REDIS_URL
    valueFrom:
      secretKeyRef:
        name: {{ $external.urlFrom.secret }}
        key: {{ $external.urlFrom.key }}
  {{- else if include "asympo.usersSecret" .root }}
  - name: REDIS_USERNAME
    value: {{ ternary .role .user (eq .root.Values.redis.mode "embedded") | quote }}
  {{- if eq .root.Values.redis.mode "external" }}
  - name: REDIS_PASSWORD_FILE
    value: /etc/asympo/broker-password/password
  {{- else }}
  - name: REDIS_PASSWORD
    valueFrom:
      secretKeyRef:
        name: {{ include "asympo.usersSecret" .root }}
        key: {{ .role }}-password
  {{- end }}
  {{- end }}
  {{- with $external.sentinel.user }}
  - name: REDIS_SENTINEL_USERNAME
    value: {{ . | quote }}
  {{- end }}
  {{- if $external.sentinel.passwordFrom.secret }}
  - name: REDIS_SENTINEL_PASSWORD_FILE
    value: /etc/asympo/sentinel-password/password
  {{- end }}
  {{- with .root.Values.checkpoints.objectStore.credentials.secret }}
  - name: AWS_ACCESS_KEY_ID
    valueFrom:
      secretKeyRef:
        name: {{ . }}
        key: {{ $.role }}-access-key-id
  - name: AWS_SECRET_ACCESS_KEY
    valueFrom:
      secretKeyRef:
        name: {{ . }}
        key: {{ $.role }}-secret-access-key
  {{- end }}
  {{- with .values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Secrets that say how to connect to the broker, as files: volume, secret, items by key. .role */}}
{{- define "asympo.brokerSecrets" -}}
{{- $external := .root.Values.redis.external }}
{{- $wanted := list (dict "volume" "broker-ca" "from" $external.caFrom "path" "ca.crt") }}
{{- $wanted = append $wanted (dict "volume" "sentinel-ca" "from" $external.sentinel.caFrom "path" "ca.crt") }}
{{- $wanted = append $wanted (dict "volume" "sentinel-password" "from" $external.sentinel.passwordFrom "path" "password") }}
{{- if and (eq .root.Values.redis.mode "external") .root.Values.redis.auth.existingSecret }}
{{- $own := dict "secret" .root.Values.redis.auth.existingSecret "key" (printf "%s-password" .role) }}
{{- $wanted = append $wanted (dict "volume" "broker-password" "from" $own "path" "password") }}
{{- end }}
{{- range $wanted }}
{{- if .from.secret }}
- volume: {{ .volume }}
  secret: {{ .from.secret }}
  items: {{ dict .from.key .path | toJson }}
{{- end }}
{{- end }}
{{- with $external.clientCertificate.secret }}
- volume: broker-client
  secret: {{ . }}
  items: {tls.crt: tls.crt, tls.key: tls.key}
{{- end }}
{{- end }}

{{/* Mounts that learner and generator have in common. .isReadOnly concerns the checkpoints. */}}
{{- define "asympo.mounts" -}}
volumeMounts:
  - name: settings
    mountPath: /etc/asympo/settings
    readOnly: true
  - name: checkpoints
    mountPath: /checkpoints
    readOnly: {{ and .isReadOnly (empty .root.Values.checkpoints.objectStore.url) }}
  - name: temporary
    mountPath: /tmp
  - name: cache
    mountPath: /cache
  - name: shared-memory
    mountPath: /dev/shm
  {{- range include "asympo.brokerSecrets" . | fromYamlArray }}
  - name: {{ .volume }}
    mountPath: /etc/asympo/{{ .volume }}
    readOnly: true
  {{- end }}
  {{- if .root.Values.checkpoints.objectStore.caFrom.secret }}
  - name: object-store-ca
    mountPath: /etc/asympo/object-store-ca
    readOnly: true
  {{- end }}
  {{- if .root.Values.control.tls.secret }}
  - name: control-tls
    mountPath: /etc/asympo/control-tls
    readOnly: true
  {{- end }}
  {{- with .values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "asympo.volumes" -}}
volumes:
  - name: settings
    configMap:
      name: {{ include "asympo.name" . }}-settings
  - name: checkpoints
    {{- if and .isReadOnly .root.Values.checkpoints.objectStore.url }}
    # Copies of what the object store holds.
    emptyDir:
      sizeLimit: {{ .root.Values.checkpoints.objectStore.cacheSize }}
    {{- else }}
    persistentVolumeClaim:
      claimName: {{ include "asympo.checkpointsClaim" .root }}
    {{- end }}
  - name: temporary
    emptyDir:
      sizeLimit: {{ .values.cacheSize }}
  - name: cache
    emptyDir:
      sizeLimit: {{ .values.cacheSize }}
  - name: shared-memory
    emptyDir:
      medium: Memory
      sizeLimit: {{ .values.sharedMemory }}
  {{- range include "asympo.brokerSecrets" . | fromYamlArray }}
  # Not by subPath: what replaces the Secret is read at the next connect.
  - name: {{ .volume }}
    secret:
      secretName: {{ .secret }}
      defaultMode: 0440
      items:
        {{- range $key, $path := .items }}
        - key: {{ $key }}
          path: {{ $path }}
        {{- end }}
  {{- end }}
  {{- with .root.Values.checkpoints.objectStore.caFrom }}
  {{- if .secret }}
  - name: object-store-ca
    secret:
      secretName: {{ .secret }}
      items:
        - key: {{ .key }}
          path: ca.crt
  {{- end }}
  {{- end }}
  {{- with .root.Values.control.tls.secret }}
  # Whole, not by subPath: the services read a changed Secret.
  - name: control-tls
    secret:
      secretName: {{ . }}
      defaultMode: 0440
  {{- end }}
  {{- with .values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Probes. The event loop answers while the engine loads in a thread; imports can hold it up for a minute. */}}
{{- define "asympo.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: {{ div (add (int .startupSeconds) 1) 2 }}
livenessProbe:
  httpGet: {path: /livez, port: http}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}

{{- define "asympo.pdb" -}}
{{- if and .values.pdb.enabled (.root.Capabilities.APIVersions.Has "policy/v1") }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "asympo.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ .values.pdb.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "asympo.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{- define "asympo.serviceAccount" -}}
{{- if .values.serviceAccount.create }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "asympo.serviceAccountName" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "asympo.labels" . | nindent 4 }}
  {{- with .values.serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
{{- end }}
