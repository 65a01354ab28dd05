{{/* Parts of pods. */}}

{{/* Image: .image, and .variant for the tag when none is given. */}}
{{- define "asympo.image" -}}
{{- $name := .image.repository }}
{{- with .root.Values.image.registry | default (.root.Values.global | default dict).imageRegistry }}
{{- $name = printf "%s/%s" (trimSuffix "/" .) $name }}
{{- end }}
{{- if .image.digest }}
{{- printf "%s@%s" $name .image.digest }}
{{- else }}
{{- printf "%s:%s" $name (.image.tag | default (printf "%s-%s" .root.Chart.AppVersion .variant)) }}
{{- end }}
{{- end }}

{{- define "asympo.variant" -}}
{{- ternary "cpu" "cuda" (eq (int .gpus) 0) }}
{{- end }}

{{/* Names, or objects with a name as other charts' global.imagePullSecrets has them. */}}
{{- define "asympo.pullSecrets" }}
{{- with .Values.image.pullSecrets | default (.Values.global | default dict).imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ if kindIs "map" . }}{{ .name | toJson }}{{ else }}{{ . | toJson }}{{ end }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What every pod of ours says about itself. .component .values .own */}}
{{- define "asympo.podBasics" -}}
serviceAccountName: {{ include "asympo.serviceAccountName" . | toJson }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with include "asympo.pullSecrets" .root | trim }}
{{ . }}
{{- end }}
{{- with include "asympo.priorityClassName" . }}
priorityClassName: {{ . | toJson }}
{{- end }}
{{- with .values.runtimeClassName }}
runtimeClassName: {{ . | toJson }}
{{- end }}
{{- with .values.schedulerName }}
schedulerName: {{ . | toJson }}
{{- end }}
{{- if .values.hostNetwork }}
hostNetwork: true
dnsPolicy: ClusterFirstWithHostNet
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

{{/*
Affinity as JSON. Where one node alone can mount the checkpoints, the learner goes to where any pod has them mounted, and
the others go to the learner. A pod that its own term chooses may be the first anywhere. .root .component .values
*/}}
{{- define "asympo.affinity" -}}
{{- $affinity := deepCopy (.values.affinity | default dict) }}
{{- if .root.Values.checkpoints.sameNode }}
{{- $selector := dict "matchLabels" (include "asympo.selector" (dict "root" .root "component" "learner") | fromYaml) }}
{{- if eq .component "learner" }}
{{- $mounting := dict "key" "app.kubernetes.io/component" "operator" "In" "values" (list "learner" "generator" "gateway" "evaluator" "environment") }}
{{- $selector = dict "matchLabels" (include "asympo.releaseSelector" .root | fromYaml) "matchExpressions" (list $mounting) }}
{{- end }}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" $selector }}
{{- $pods := $affinity.podAffinity | default dict }}
{{- $terms := append ($pods.requiredDuringSchedulingIgnoredDuringExecution | default list) $term }}
{{- $_ := set $affinity "podAffinity" (set $pods "requiredDuringSchedulingIgnoredDuringExecution" $terms) }}
{{- end }}
{{- $affinity | toJson }}
{{- end }}

{{/* Ids that are null are left to the cluster, as OpenShift wants it. */}}
{{- define "asympo.podSecurityContext" -}}
{{- $own := .Values.podSecurity -}}
securityContext:
  runAsNonRoot: true
  {{- if not (kindIs "invalid" $own.userId) }}
  runAsUser: {{ $own.userId | toJson }}
  {{- end }}
  {{- if not (kindIs "invalid" $own.groupId) }}
  runAsGroup: {{ $own.groupId | toJson }}
  fsGroup: {{ $own.groupId | toJson }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
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
Quantities are text, and a number is never written with an exponent: the server-side apply of older clusters, which
Helm 4 uses, refuses numbers.
*/}}
{{- define "asympo.quantity" -}}
{{- ternary . (toJson .) (kindIs "string" .) | toJson }}
{{- end }}

{{/* Resources with the GPUs among the limits. */}}
{{- define "asympo.resources" -}}
{{- $resources := deepCopy .resources }}
{{- if gt (int .gpus) 0 }}
{{- $_ := set $resources "limits" (set ($resources.limits | default dict) .gpuResource (int .gpus)) }}
{{- end -}}
{{- range list "requests" "limits" }}
{{- $amounts := index $resources . | default dict }}
{{- range $name, $amount := $amounts }}
{{- $_ := set $amounts $name (ternary $amount (toJson $amount) (kindIs "string" $amount)) }}
{{- end }}
{{- end -}}
resources:
  {{- toYaml $resources | nindent 2 }}
{{- end }}

{{/* Variables in .own, as YAML, but for those that .extra gives another value; then .extra. */}}
{{- define "asympo.variables" -}}
{{- $given := list }}
{{- range .extra }}{{ $given = append $given .name }}{{ end }}
{{- $all := list }}
{{- range .own | fromYamlArray }}
{{- if not (has .name $given) }}{{ $all = append $all . }}{{ end }}
{{- end -}}
env:
  {{- toYaml (concat $all (.extra | default list)) | nindent 2 }}
{{- end }}

{{- define "asympo.environment" -}}
{{- include "asympo.variables" (dict "own" (include "asympo.ownEnvironment" .) "extra" .values.extraEnv) }}
{{- end }}

{{/* Environment: user and password of the broker by .role, where libraries may write, what a learner on CPUs needs. */}}
{{- define "asympo.ownEnvironment" -}}
{{- $external := .root.Values.redis.external }}
  - name: HOME
    value: /tmp
  - name: XDG_CACHE_HOME
    value: /cache
  - name: HF_HOME
    value: /cache/huggingface
  {{- if eq (include "asympo.isDataOfHub" .root) "true" }}
  {{- with .root.Values.model.download.endpoint }}
  - name: HF_ENDPOINT
    value: {{ . | toJson }}
  {{- end }}
  {{- with .root.Values.model.download.token }}
  {{- if .secret }}
  - name: HF_TOKEN
    valueFrom:
      secretKeyRef:
        name: {{ .secret | toJson }}
        key: {{ .key | toJson }}
  {{- end }}
  {{- end }}
  {{- else }}
  - name: HF_HUB_OFFLINE
    value: "1"
  {{- end }}
  - name: TORCHINDUCTOR_CACHE_DIR
    value: /cache/inductor
  - name: TRITON_CACHE_DIR
    value: /cache/triton
  {{- if and (eq .component "learner") (eq (int .values.gpus) 0) }}
  # glibc: keep memory, which costs more to fault in anew than the arithmetic.
  - name: MALLOC_MMAP_MAX_
    value: "0"
  - name: MALLOC_TRIM_THRESHOLD_
    value: "100000000000"
  - name: MALLOC_TOP_PAD_
    value: "268435456"
  # oneDNN and torch: keep the kernels of a few shapes. OpenMP: a thread that waits gives its core away.
  - name: ONEDNN_PRIMITIVE_CACHE_CAPACITY
    value: "64"
  - name: LRU_CACHE_CAPACITY
    value: "64"
  - name: KMP_BLOCKTIME
    value: "0"
  - name: OMP_WAIT_POLICY
    value: PASSIVE
  - name: GOMP_SPINCOUNT
    value: "0"
  {{- end }}
  {{- if and (eq .root.Values.redis.mode "external") $external.urlFrom.secret }}
  - name: REDIS_URL
    valueFrom:
      secretKeyRef:
        name: {{ $external.urlFrom.secret | toJson }}
        key: {{ $external.urlFrom.key | toJson }}
  {{- else if include "asympo.usersSecret" .root }}
  - name: REDIS_USERNAME
    value: {{ ternary .role .user (eq .root.Values.redis.mode "embedded") | toJson }}
  {{- if eq .root.Values.redis.mode "external" }}
  - name: REDIS_PASSWORD_FILE
    value: /etc/asympo/broker-password/password
  {{- else }}
  - name: REDIS_PASSWORD
    valueFrom:
      secretKeyRef:
        name: {{ include "asympo.usersSecret" .root | toJson }}
        key: {{ get .root.Values.redis.auth.keys .role | toJson }}
  {{- end }}
  {{- end }}
  {{- with $external.sentinel.user }}
  - name: REDIS_SENTINEL_USERNAME
    value: {{ . | toJson }}
  {{- end }}
  {{- if $external.sentinel.passwordFrom.secret }}
  - name: REDIS_SENTINEL_PASSWORD_FILE
    value: /etc/asympo/sentinel-password/password
  {{- end }}
  {{- if and .root.Values.checkpoints.objectStore.credentials.secret (ne .role "gateway") }}
  {{- range $variable, $key := dict "AWS_ACCESS_KEY_ID" "Id" "AWS_SECRET_ACCESS_KEY" "Secret" }}
  - name: {{ $variable | toJson }}
    valueFrom:
      secretKeyRef:
        name: {{ $.root.Values.checkpoints.objectStore.credentials.secret | toJson }}
        key: {{ get $.root.Values.checkpoints.objectStore.credentials.keys (print (ternary "learner" "generator" (eq $.role "learner")) $key) | toJson }}
  {{- end }}
  {{- end }}
  {{- with include "asympo.pythonPath" . }}
  - name: PYTHONPATH
    value: {{ . | toJson }}
  {{- end }}
  {{- if and (eq .role "learner") (gt (int .values.nodes) 1) }}
  - name: POD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  {{- end }}
{{- end }}

{{/* Where Python finds the code among `data`; generators, the evaluator and the environment run it. */}}
{{- define "asympo.pythonPath" -}}
{{- $paths := list }}
{{- if has .role (list "generator" "evaluator" "environment") }}
{{- range $name, $own := .root.Values.data }}
{{- if $own.isCode }}{{ $paths = append $paths $own.mountPath }}{{ end }}
{{- end }}
{{- end }}
{{- join ":" $paths }}
{{- end }}

{{/* Mounts of what the person who trains brings along: the same in every container that needs it. */}}
{{- define "asympo.dataMounts" -}}
{{- range $name, $own := .Values.data }}
{{- if not $own.isInImage }}
- name: {{ printf "data-%s" $name | toJson }}
  mountPath: {{ $own.mountPath | toJson }}
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "asympo.dataVolumes" -}}
{{- range $name, $own := .Values.data }}
{{- if not $own.isInImage }}
- name: {{ printf "data-%s" $name | toJson }}
  {{- if $own.configMap }}
  configMap:
    name: {{ $own.configMap | toJson }}
  {{- else if $own.claim }}
  persistentVolumeClaim:
    claimName: {{ $own.claim | toJson }}
    readOnly: true
  {{- else }}
  image:
    reference: {{ $own.image | toJson }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Secrets that the services read as files, where the folder below /etc/asympo is named like the volume. .role */}}
{{- define "asympo.secretFiles" -}}
{{- $external := .root.Values.redis.external }}
{{- $store := .root.Values.checkpoints.objectStore }}
{{- range $volume, $from := dict "broker-ca" $external.caFrom "sentinel-ca" $external.sentinel.caFrom "object-store-ca" $store.caFrom }}
- {volume: {{ $volume | toJson }}, secret: {{ $from.secret | toJson }}, items: {ca.crt: {{ $from.key | toJson }}}}
{{- end }}
{{- with $external.sentinel.passwordFrom }}
- {volume: sentinel-password, secret: {{ .secret | toJson }}, items: {password: {{ .key | toJson }}}}
{{- end }}
{{- if eq .root.Values.redis.mode "external" }}
{{- with .root.Values.redis.auth }}
- {volume: broker-password, secret: {{ .existingSecret | toJson }}, items: {password: {{ get .keys $.role | toJson }}}}
{{- end }}
{{- end }}
{{- if eq .role "gateway" }}
{{- with .root.Values.gateway }}
- {volume: producers, secret: {{ .producersFrom.secret | toJson }}, items: {producers.toml: {{ .producersFrom.key | toJson }}}}
- {volume: doors-token, secret: {{ .doorsTokenFrom.secret | toJson }}, items: {token: {{ .doorsTokenFrom.key | toJson }}}}
{{- end }}
{{- end }}
{{- with $external.clientCertificate }}
- {volume: broker-client, secret: {{ .secret | toJson }}, items: {tls.crt: {{ .keys.certificate | toJson }}, tls.key: {{ .keys.key | toJson }}}}
{{- end }}
{{- with .root.Values.control.tls }}
- {volume: control-tls, secret: {{ .secret | toJson }}, items: {tls.crt: {{ .keys.certificate | toJson }}, tls.key: {{ .keys.key | toJson }}, ca.crt: {{ .keys.clientCa | toJson }}}}
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
    readOnly: {{ and .isReadOnly (empty .root.Values.checkpoints.objectStore.url) | toJson }}
  {{- if not .root.Values.checkpoints.objectStore.url }}
  - name: copies
    mountPath: /copies
  {{- end }}
  - name: temporary
    mountPath: /tmp
  - name: cache
    mountPath: /cache
  - name: shared-memory
    mountPath: /dev/shm
  {{- range include "asympo.secretFiles" . | fromYamlArray }}
  {{- if .secret }}
  - name: {{ .volume | toJson }}
    mountPath: {{ printf "/etc/asympo/%s" .volume | toJson }}
    readOnly: true
  {{- end }}
  {{- end }}
  {{- with include "asympo.dataMounts" .root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "asympo.volumes" -}}
volumes:
  - name: settings
    configMap:
      name: {{ printf "%s-settings" (include "asympo.name" .) | toJson }}
  - name: checkpoints
    {{- if and .isReadOnly .root.Values.checkpoints.objectStore.url }}
    # Copies of what the object store holds.
    emptyDir:
      sizeLimit: {{ include "asympo.quantity" .root.Values.checkpoints.objectStore.cacheSize }}
    {{- else }}
    persistentVolumeClaim:
      claimName: {{ include "asympo.checkpointsClaim" .root | toJson }}
    {{- end }}
  {{- if not .root.Values.checkpoints.objectStore.url }}
  - name: copies
    emptyDir:
      sizeLimit: {{ include "asympo.quantity" .root.Values.checkpoints.cacheSize }}
  {{- end }}
  - name: temporary
    emptyDir:
      sizeLimit: {{ include "asympo.quantity" .values.cacheSize }}
  - name: cache
    emptyDir:
      sizeLimit: {{ include "asympo.quantity" .values.cacheSize }}
  - name: shared-memory
    emptyDir:
      medium: Memory
      sizeLimit: {{ include "asympo.quantity" .values.sharedMemory }}
  {{- range include "asympo.secretFiles" . | fromYamlArray }}
  {{- if .secret }}
  # Not by subPath: what replaces the Secret is read at the next connect.
  - name: {{ .volume | toJson }}
    secret:
      secretName: {{ .secret | toJson }}
      defaultMode: 0440
      items:
        {{- range $path, $key := .items }}
        - key: {{ $key | toJson }}
          path: {{ $path | toJson }}
        {{- end }}
  {{- end }}
  {{- end }}
  {{- with include "asympo.dataVolumes" .root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with .values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Longer than a first start may take: the learner's, whose run or policy it waits for, and then its own. .root .values */}}
{{- define "asympo.progressSeconds" -}}
{{- add (int .root.Values.learner.startupSeconds) (int .values.startupSeconds) 600 }}
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
  maxUnavailable: {{ .values.pdb.maxUnavailable | toJson }}
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
  {{- include "asympo.metadata" (merge (dict "name" (include "asympo.serviceAccountName" .) "annotations" .values.serviceAccount.annotations) .) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- end }}

{{/* The pod template's metadata. .toml: its settings' text; .values .own as everywhere. */}}
{{- define "asympo.podMetadata" -}}
labels:
  {{- include "asympo.labels" (merge (dict "more" (merge (deepCopy (.more | default dict)) (.values.podLabels | default dict))) .) | nindent 2 }}
annotations:
  checksum/settings: {{ .files | sha256sum | toJson }}
  {{- with include "asympo.usersChecksum" .root }}
  checksum/broker-users: {{ . | toJson }}
  {{- end }}
  {{- with omit (merge (deepCopy (.values.podAnnotations | default dict)) (.root.Values.commonAnnotations | default dict)) "checksum/settings" "checksum/broker-users" }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Containers of the user before and beside ours, and where more of the environment comes from. */}}
{{- define "asympo.envFrom" -}}
{{- with .values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
