{{/* What cannot work, each in one sentence that says what to set. Rendered by every command, NOTES or not. */}}
{{- define "asympo.refuse" -}}
{{- $v := .Values }}
{{- if not (or $v.learner.enabled $v.generator.enabled $v.evaluator.enabled $v.gateway.enabled) }}
{{- fail "learner.enabled, generator.enabled, evaluator.enabled and gateway.enabled are all false: nothing would run; set one of them to true" }}
{{- end }}
{{- include "asympo.refuseLabels" . }}
{{- include "asympo.refuseAccounts" . }}
{{- include "asympo.refuseBroker" . }}
{{- include "asympo.refuseStorage" . }}
{{- include "asympo.refuseModel" . }}
{{- include "asympo.refuseData" . }}
{{- include "asympo.refuseLearner" . }}
{{- include "asympo.refusePools" . }}
{{- range include "asympo.generators" . | fromJsonArray }}
{{- $generator := dict "root" $ "pool" .pool "values" .values "named" (ternary (printf "generator.pools.%s" .pool) "generator" (ne .pool "")) }}
{{- include "asympo.refuseGenerator" $generator }}
{{- include "asympo.refuseAutoscaling" $generator }}
{{- end }}
{{- include "asympo.refuseEvaluator" . }}
{{- include "asympo.refuseKinds" . }}
{{- include "asympo.refusePage" . }}
{{- include "asympo.refuseControl" . }}
{{- include "asympo.refuseTracing" . }}
{{- include "asympo.refuseGateway" . }}
{{- include "asympo.refuseEnvironment" . }}
{{- include "asympo.refuseSecrets" . }}
{{- include "asympo.refuseImmutable" . }}
{{- end }}

{{- define "asympo.refuseBroker" -}}
{{- $redis := .Values.redis }}
{{- $external := $redis.external }}
{{- if eq $redis.mode "external" }}
{{- if not (or $external.url $external.urlFrom.secret) }}
{{- fail "redis.mode is external and no broker is named: set redis.external.url to redis://HOST:6379/0, or redis.external.urlFrom.secret and .key" }}
{{- end }}
{{- if and $external.url $external.urlFrom.secret }}
{{- fail "redis.external.url and redis.external.urlFrom.secret both name the broker: set one of them" }}
{{- end }}
{{- if and $external.urlFrom.secret $redis.auth.existingSecret }}
{{- fail "redis.external.urlFrom.secret holds the password already: leave redis.auth.existingSecret empty, or give redis.external.url instead" }}
{{- end }}
{{- range $value, $secret := dict "caFrom" $external.caFrom.secret "clientCertificate" $external.clientCertificate.secret }}
{{- if and $secret $external.urlFrom.secret }}
{{- fail (printf "redis.external.%s is put into redis.external.url: with redis.external.urlFrom, write ssl_ca_certs=PATH, ssl_certfile=PATH and ssl_keyfile=PATH into the URL and mount the files with extraVolumes" $value) }}
{{- end }}
{{- if and $secret (not (hasPrefix "rediss" $external.url)) }}
{{- fail (printf "redis.external.%s is for TLS, and redis.external.url is %s: set it to rediss://HOST:PORT/0 or rediss+sentinel://HOST:PORT/SERVICE, or leave the Secret's name empty" $value $external.url) }}
{{- end }}
{{- end }}
{{- include "asympo.refuseSentinel" . }}
{{- if and .Values.networkPolicy.enabled $external.urlFrom.secret (not $external.port) }}
{{- fail (printf "redis.external.urlFrom.secret is %s, and the network policies cannot read the broker's port from it: set redis.external.port" $external.urlFrom.secret) }}
{{- end }}
{{- else }}
{{- if and (not $redis.auth.existingSecret) (include "asympo.isForCluster" .) (not (include "asympo.isOnline" .)) }}
{{- fail (printf "the broker's passwords cannot be drawn here: this is rendered for a cluster that Helm may not ask, as Argo CD does, so every rendering would have other ones; create the Secret once, kubectl --namespace %s create secret generic broker-users --from-literal=learner-password=... --from-literal=generator-password=... --from-literal=operator-password=..., and set redis.auth.existingSecret=broker-users" .Release.Namespace) }}
{{- end }}
{{- if not .Values.learner.enabled }}
{{- fail "learner.enabled is false and redis.mode is embedded: the generators would wait at a broker that no learner knows; set redis.mode=external and redis.external.url to the learner's broker" }}
{{- end }}
{{- if or $external.url $external.urlFrom.secret }}
{{- fail "redis.external names a broker and redis.mode is embedded: set redis.mode=external, or leave redis.external empty" }}
{{- end }}
{{- end }}
{{- range list $external.urlFrom $external.caFrom $external.sentinel.caFrom $external.sentinel.passwordFrom .Values.model.download.token }}
{{- if and .secret (not .key) }}
{{- fail (printf "the Secret %s is named without a key: set key beside secret" .secret) }}
{{- end }}
{{- end }}
{{- $resources := $redis.embedded.resources | default dict }}
{{- range list (list "requests" "memory" "memoryMiB") (list "limits" "memory" "memoryMiB") (list "requests" "cpu" "cpu") }}
{{- if hasKey (get $resources (first .) | default dict) (index . 1) }}
{{- fail (printf "redis.embedded.resources.%s has %s: set redis.embedded.%s instead" (first .) (index . 1) (last .)) }}
{{- end }}
{{- end }}
{{- if and (eq $redis.mode "embedded") $redis.embedded.hostNetwork }}
{{- include "asympo.refuseHostNetwork" (dict "root" . "values" $redis.embedded "named" "redis.embedded") }}
{{- end }}
{{- end }}

{{/* Labels by which the chart finds its objects. */}}
{{- define "asympo.refuseLabels" -}}
{{- $ours := list "asympo/pool" "asympo/scrape" }}
{{- range $key, $_ := include "asympo.ownLabels" (dict "root" . "component" "any") | fromYaml }}{{ $ours = append $ours $key }}{{ end }}
{{- $all := dict "commonLabels" .Values.commonLabels }}
{{- range $name := list "learner" "generator" "gateway" "evaluator" "environment" }}
{{- range $kind := list "podLabels" "workloadLabels" }}{{ $_ := set $all (printf "%s.%s" $name $kind) (index $.Values $name $kind) }}{{ end }}
{{- end }}
{{- range $kind := list "podLabels" "workloadLabels" }}
{{- $_ := set $all (printf "redis.embedded.%s" $kind) (index $.Values.redis.embedded $kind) }}
{{- range $pool, $own := $.Values.generator.pools }}{{ $_ := set $all (printf "generator.pools.%s.%s" $pool $kind) (index $own $kind) }}{{ end }}
{{- end }}
{{- range $where, $labels := $all }}
{{- range $key, $_ := $labels }}
{{- if has $key $ours }}
{{- fail (printf "%s has %s, a label by which the chart finds its own objects: leave it out" $where $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Two accounts of one name would be one object twice. */}}
{{- define "asympo.refuseAccounts" -}}
{{- $made := dict }}
{{- $services := pick .Values "learner" "generator" "gateway" "evaluator" "environment" }}
{{- if eq .Values.redis.mode "embedded" }}{{ $_ := set $services "redis.embedded" (merge (dict "enabled" true) .Values.redis.embedded) }}{{ end }}
{{- range $named, $own := $services }}
{{- $account := $own.serviceAccount }}
{{- if and $own.enabled $account.create $account.name }}
{{- if hasKey $made $account.name }}
{{- fail (printf "%s.serviceAccount and %s.serviceAccount both create %s: set create=false in one of them" (get $made $account.name) $named $account.name) }}
{{- end }}
{{- $_ := set $made $account.name $named }}
{{- end }}
{{- end }}
{{- end }}

{{- define "asympo.refuseHostNetwork" -}}
{{- if and .values.hostNetwork .root.Values.networkPolicy.enabled }}
{{- fail (printf "%s.hostNetwork is true and networkPolicy.enabled too: policies do not hold for pods on the node's network; set networkPolicy.enabled=false" .named) }}
{{- end }}
{{- end }}

{{- define "asympo.refuseSentinel" -}}
{{- $external := .Values.redis.external }}
{{- $own := $external.sentinel }}
{{- $given := or $own.caFrom.secret $own.passwordFrom.secret $own.user (not (kindIs "invalid" $own.tls)) }}
{{- if and $given (not (contains "+sentinel://" $external.url)) }}
{{- fail (printf "redis.external.sentinel is set and redis.external.url is %s: set it to redis+sentinel://HOST:PORT,HOST:PORT/SERVICE, or leave redis.external.sentinel as it is" ($external.url | default "empty")) }}
{{- end }}
{{- if and $own.user (not $own.passwordFrom.secret) }}
{{- fail "redis.external.sentinel.user has no password: set redis.external.sentinel.passwordFrom.secret and .key" }}
{{- end }}
{{- $isTls := ternary (hasPrefix "rediss" $external.url) $own.tls (kindIs "invalid" $own.tls) }}
{{- if and $own.caFrom.secret (not $isTls) }}
{{- fail "redis.external.sentinel.caFrom is for TLS: set redis.external.sentinel.tls=true, or redis.external.url to rediss+sentinel://" }}
{{- end }}
{{- end }}

{{- define "asympo.refuseStorage" -}}
{{- $checkpoints := .Values.checkpoints }}
{{- $hasStore := not (empty $checkpoints.objectStore.url) }}
{{- include "asympo.refuseObjectStore" . }}
{{- $modes := list $checkpoints.accessMode }}
{{- if $checkpoints.existingClaim }}
{{- $claim := include "asympo.present" (dict "root" . "apiVersion" "v1" "kind" "PersistentVolumeClaim" "name" $checkpoints.existingClaim) | fromJson }}
{{- $modes = ternary ($claim.spec | default dict).accessModes (list "ReadWriteMany") (not (empty $claim)) }}
{{- if and (include "asympo.isOnline" .) (empty $claim) }}
{{- fail (printf "checkpoints.existingClaim names %s, which namespace %s does not have: create it, or leave the value empty to have one created" $checkpoints.existingClaim .Release.Namespace) }}
{{- end }}
{{- else if not (or .Values.learner.enabled $hasStore) }}
{{- fail "learner.enabled is false and checkpoints.existingClaim is empty: the generators would look for policies on a new, empty volume; set checkpoints.existingClaim to the learner's claim" }}
{{- end }}
{{- if and (not $hasStore) (not (has "ReadWriteMany" $modes)) (not $checkpoints.sameNode) (or .Values.generator.enabled .Values.evaluator.enabled .Values.gateway.enabled .Values.environment.enabled) }}
{{- $volume := ternary "checkpoints.existingClaim to a claim that is ReadWriteMany" "checkpoints.accessMode=ReadWriteMany with a storage class that has it" (not (empty $checkpoints.existingClaim)) }}
{{- $other := ternary ", checkpoints.objectStore.url to share through a bucket, or checkpoints.sameNode=true to keep all that mount it on one node" ", or checkpoints.objectStore.url to the bucket through which the learner shares" .Values.learner.enabled }}
{{- fail (printf "the checkpoints volume is %s: pods on other nodes cannot mount it; set %s%s" (join "," $modes) $volume $other) }}
{{- end }}
{{- if and $checkpoints.sameNode (not .Values.learner.enabled) }}
{{- fail "checkpoints.sameNode puts generators beside this release's learner, and learner.enabled is false: set checkpoints.sameNode=false and use a ReadWriteMany claim" }}
{{- end }}
{{- end }}

{{- define "asympo.refuseObjectStore" -}}
{{- $checkpoints := .Values.checkpoints }}
{{- $store := $checkpoints.objectStore }}
{{- if $store.url }}
{{- if $checkpoints.sameNode }}
{{- fail "checkpoints.objectStore.url shares checkpoints between nodes and checkpoints.sameNode keeps the pods on one: set checkpoints.sameNode=false" }}
{{- end }}
{{- if gt (int .Values.learner.nodes) 1 }}
{{- fail (printf "learner.nodes is %d and checkpoints.objectStore.url is set: ranks of several nodes write one training state together, for which they need a ReadWriteMany volume; leave checkpoints.objectStore.url empty, or set learner.nodes=1" (int .Values.learner.nodes)) }}
{{- end }}
{{- if and $store.caFrom.secret (not (hasPrefix "https://" $store.endpoint)) }}
{{- fail "checkpoints.objectStore.caFrom is for an endpoint with https: set checkpoints.objectStore.endpoint to https://HOST, or leave caFrom.secret empty" }}
{{- end }}
{{- if and $store.caFrom.secret (not $store.caFrom.key) }}
{{- fail (printf "the Secret %s is named without a key: set key beside secret" $store.caFrom.secret) }}
{{- end }}
{{- if not (or $store.endpoint $store.region) }}
{{- fail "checkpoints.objectStore.url is set without a place: set checkpoints.objectStore.region for AWS S3, or checkpoints.objectStore.endpoint for another store" }}
{{- end }}
{{- range $name := list "learner" "generator" "evaluator" }}
{{- if and $store.credentials.secret (hasKey (index $.Values $name).serviceAccount.annotations "eks.amazonaws.com/role-arn") }}
{{- fail (printf "%s.serviceAccount.annotations gives the pods an identity and checkpoints.objectStore.credentials.secret another: set one of them" $name) }}
{{- end }}
{{- end }}
{{- else if or $store.endpoint $store.region $store.credentials.secret $store.caFrom.secret }}
{{- fail "checkpoints.objectStore is described and names no bucket: set checkpoints.objectStore.url to s3://BUCKET/PREFIX, or leave the others empty" }}
{{- end }}
{{- end }}

{{- define "asympo.refuseModel" -}}
{{- $model := .Values.model }}
{{- if and $model.path $model.download.repository }}
{{- fail "model.path and model.download.repository both name the model: set one of them" }}
{{- end }}
{{- if and .Values.learner.enabled (not (or $model.path $model.download.repository)) }}
{{- fail "no model is named: set model.download.repository and .revision to fetch one from the hub, or model.path to a directory that the pods see, such as /checkpoints/models/NAME" }}
{{- end }}
{{- if and $model.download.repository (not $model.download.revision) }}
{{- fail (printf "model.download.revision is empty: set it to the commit of %s to use, 40 hexadecimal digits, so that every start finds the same model" $model.download.repository) }}
{{- end }}
{{- if and $model.download.repository (not .Values.learner.enabled) }}
{{- fail "model.download is done by the learner's pod, and learner.enabled is false: set it in the learner's release" }}
{{- end }}
{{- end }}

{{/* What learner and generators have in common. .named: where its values are. .root .values */}}
{{- define "asympo.refuseResources" -}}
{{- $own := .values }}
{{- if not (($own.resources.limits | default dict).memory) }}
{{- fail (printf "%s.resources.limits.memory is missing: set it, or a leak takes the node's other pods along" .named) }}
{{- end }}
{{- if hasKey ($own.resources.limits | default dict) $own.gpuResource }}
{{- fail (printf "%s.resources.limits holds %s: set %s.gpus instead" .named $own.gpuResource .named) }}
{{- end }}
{{- if and (gt (int $own.gpus) 0) (not (hasPrefix "nvidia.com/" $own.gpuResource)) (not (or $own.image.tag $own.image.digest)) }}
{{- fail (printf "%s.gpuResource is %s, and the images of this project are for NVIDIA's GPUs: set %s.image.repository and .tag to an image of yours for that kind, or %s.gpus=0 for the CPU image" .named $own.gpuResource .named .named) }}
{{- end }}
{{- include "asympo.refuseHostNetwork" . }}
{{- include "asympo.refuseAffinity" . }}
{{- if .root.Values.networkPolicy.enabled }}
{{- range $own.extraEnv }}
{{- if and (has .name (include "asympo.addressVariables" $ | fromJsonArray)) .valueFrom }}
{{- fail (printf "%s.extraEnv takes %s from elsewhere, and the network policies cannot read its port: give it as a value, or set networkPolicy.enabled=false" $.named .name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Kubernetes wants one pod on the node that matches all terms, and a person's are about other pods than ours. .root .values .named */}}
{{- define "asympo.refuseAffinity" -}}
{{- $terms := ((.values.affinity | default dict).podAffinity | default dict).requiredDuringSchedulingIgnoredDuringExecution }}
{{- if and .root.Values.checkpoints.sameNode $terms }}
{{- fail (printf "checkpoints.sameNode and %s.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution each want a pod on the node, and Kubernetes only takes one that matches both: choose the node with nodeAffinity, or move the terms to preferredDuringSchedulingIgnoredDuringExecution" .named) }}
{{- end }}
{{- end }}

{{- define "asympo.refuseLearner" -}}
{{- $learner := .Values.learner }}
{{- if $learner.enabled }}
{{- include "asympo.refuseResources" (dict "root" . "values" $learner "named" "learner") }}
{{- end }}
{{- if and (eq (int $learner.gpus) 0) (eq (include "asympo.learnerSettings" . | fromJson).device "cuda") }}
{{- fail "learner.settings.device is cuda and learner.gpus is 0: set learner.gpus=1, or the device to auto" }}
{{- end }}
{{- include "asympo.refuseRanks" . }}
{{- $needed := include "asympo.neededLearnerGraceSeconds" . | int }}
{{- $given := $learner.terminationGracePeriodSeconds }}
{{- if and $given (lt (int $given) $needed) }}
{{- fail (printf "learner.terminationGracePeriodSeconds is %d and a drain takes up to %d: set it to null, or make learner.settings.drain_seconds shorter" (int $given) $needed) }}
{{- end }}
{{- end }}

{{- define "asympo.refusePools" -}}
{{- $generator := .Values.generator }}
{{- if and $generator.pools (not $generator.enabled) }}
{{- fail "generator.pools has pools and generator.enabled is false: set it to true, or leave the pools out" }}
{{- end }}
{{- end }}

{{- define "asympo.refuseGenerator" -}}
{{- include "asympo.refuseResources" . }}
{{- $own := .values }}
{{- $gpus := int $own.gpus }}
{{- $settings := include "asympo.settings" (merge (dict "service" "generator") .) | fromJson }}
{{- $parallel := int $settings.vllm.tensor_parallel_size }}
{{- if and (gt $gpus 0) (gt $parallel $gpus) }}
{{- fail (printf "%s.settings.vllm.tensor_parallel_size is %d and %s.gpus is %d: set %s.gpus to %d" .named $parallel .named $gpus .named $parallel) }}
{{- end }}
{{- if and (gt $gpus 0) (eq $settings.engine "simulated") }}
{{- fail (printf "%s.settings.engine is simulated and %s.gpus is %d: the simulated engine uses none; set %s.gpus=0" .named .named $gpus .named) }}
{{- end }}
{{- $needed := include "asympo.neededGraceSeconds" . | int }}
{{- $given := $own.terminationGracePeriodSeconds }}
{{- if and $given (lt (int $given) $needed) }}
{{- fail (printf "%s.terminationGracePeriodSeconds is %d and a drain takes up to %d: set it to null, or make %s.settings.drain_seconds shorter" .named (int $given) $needed .named) }}
{{- end }}
{{- if and (has (toString $own.strategy.maxSurge) (list "0" "0%")) (has (toString $own.strategy.maxUnavailable) (list "0" "0%")) }}
{{- fail (printf "%s.strategy.maxSurge and .maxUnavailable are both 0: no generator could ever be replaced; set one of them" .named) }}
{{- end }}
{{- end }}

{{- define "asympo.refuseEvaluator" -}}
{{- $own := .Values.evaluator }}
{{- if $own.enabled }}
{{- include "asympo.refuseResources" (dict "root" . "values" $own "named" "evaluator") }}
{{- $settings := include "asympo.settings" (dict "root" . "service" "evaluator" "values" $own) | fromJson }}
{{- if eq $settings.engine "generators" }}
{{- fail "evaluator.settings.engine is generators, which are in pods of their own, and it asks none but those of its own machine: set it to vllm, and evaluator.gpus" }}
{{- end }}
{{- if and (eq $settings.engine "simulated") (gt (int $own.gpus) 0) }}
{{- fail (printf "evaluator.settings.engine is simulated and evaluator.gpus is %d: the simulated engine uses none; set evaluator.gpus=0" (int $own.gpus)) }}
{{- end }}
{{- $parallel := int $settings.vllm.tensor_parallel_size }}
{{- if and (gt (int $own.gpus) 0) (gt $parallel (int $own.gpus)) }}
{{- fail (printf "evaluator.settings.vllm.tensor_parallel_size is %d and evaluator.gpus is %d: set evaluator.gpus to %d" $parallel (int $own.gpus) $parallel) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "asympo.refuseRanks" -}}
{{- $learner := .Values.learner }}
{{- $ranks := include "asympo.ranksPerPod" . | int }}
{{- if $learner.enabled }}
{{- if and (gt (int $learner.gpus) 0) (ne $ranks (int $learner.gpus)) }}
{{- fail (printf "learner.ranks is %d and learner.gpus is %d: every rank has a GPU of its own; set learner.ranks=null" $ranks (int $learner.gpus)) }}
{{- end }}
{{- if and (gt (int $learner.nodes) 1) (or .Values.checkpoints.sameNode (and (not .Values.checkpoints.existingClaim) (ne .Values.checkpoints.accessMode "ReadWriteMany"))) }}
{{- fail (printf "learner.nodes is %d and the checkpoints volume is for one node: every rank writes its part of the state; set checkpoints.accessMode=ReadWriteMany and checkpoints.sameNode=false" (int $learner.nodes)) }}
{{- end }}
{{- if and (eq $learner.kind "LeaderWorkerSet") (lt (int $learner.nodes) 2) }}
{{- fail "learner.kind is LeaderWorkerSet and learner.nodes is 1: it is for several nodes; set learner.nodes, or learner.kind=StatefulSet" }}
{{- end }}
{{- if and (eq $learner.kind "LeaderWorkerSet") (not (.Capabilities.APIVersions.Has "leaderworkerset.x-k8s.io/v1/LeaderWorkerSet")) }}
{{- fail "learner.kind is LeaderWorkerSet and the cluster has no such kind: install LeaderWorkerSet, or set learner.kind=StatefulSet" }}
{{- end }}
{{- end }}
{{- end }}

{{/* drain_seconds, then 30 s that torchrun keeps to end ranks that are left, then 30 s for the rest. */}}
{{- define "asympo.neededLearnerGraceSeconds" -}}
{{- add (ceil (include "asympo.learnerSettings" . | fromJson).drain_seconds) 60 }}
{{- end }}

{{- define "asympo.learnerGraceSeconds" -}}
{{- .Values.learner.terminationGracePeriodSeconds | default (include "asympo.neededLearnerGraceSeconds" .) }}
{{- end }}

{{/* drain_seconds, then 30 s in which the engine is closed, then 10 s for the rest. .root .values */}}
{{- define "asympo.neededGraceSeconds" -}}
{{- add (ceil (include "asympo.settings" (merge (dict "service" "generator") .) | fromJson).drain_seconds) 40 }}
{{- end }}

{{- define "asympo.generatorGraceSeconds" -}}
{{- .values.terminationGracePeriodSeconds | default (include "asympo.neededGraceSeconds" .) }}
{{- end }}

{{- define "asympo.refuseKinds" -}}
{{- range $value, $kind := dict "serviceMonitor" "ServiceMonitor" "podMonitor" "PodMonitor" "prometheusRule" "PrometheusRule" }}
{{- if and (index $.Values.monitoring $value).enabled (not ($.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" $kind))) }}
{{- fail (printf "monitoring.%s.enabled is true and the cluster has no kind %s: install the Prometheus operator, or set it to false" $value $kind) }}
{{- end }}
{{- end }}
{{- if and .Values.monitoring.prometheusRule.enabled (eq .Values.monitoring.prometheusRule.scope "all") }}
{{- include "asympo.refuseSecondRules" . }}
{{- end }}
{{- end }}

{{/* The rules cover every run that Prometheus sees: with two copies every alert would fire twice. */}}
{{- define "asympo.refuseSecondRules" -}}
{{- with include "asympo.releasesWithRules" . }}
{{- fail (printf "monitoring.prometheusRule.enabled is true, and release %s brings the same rules, which cover every run: set monitoring.prometheusRule.scope=release, for the alerts about this release alone" .) }}
{{- end }}
{{- end }}

{{- define "asympo.releasesWithRules" -}}
{{- range (include "asympo.present" (dict "root" . "apiVersion" "monitoring.coreos.com/v1" "kind" "PrometheusRule" "name" "") | fromJson).items }}
{{- $labels := .metadata.labels | default dict }}
{{- if and (eq (get $labels "app.kubernetes.io/part-of") "asympo") (eq (get $labels "app.kubernetes.io/component") "monitoring") (ne (get $labels "app.kubernetes.io/instance") $.Release.Name) }}
{{- get $labels "app.kubernetes.io/instance" }}{{ break }}
{{- end }}
{{- end }}
{{- end }}

{{- define "asympo.refuseAutoscaling" -}}
{{- $auto := .values.autoscaling }}
{{- if ne $auto.kind "none" }}
{{- $task := (include "asympo.learnerSettings" .root | fromJson).task.name }}
{{- if has $task (list "verifiers" "trl-environment") }}
{{- fail (printf "%s.autoscaling.kind is %s and learner.settings.task.name is %s: generators that an environment asks lease nothing, and leases are what the autoscaler counts; set kind to none, and replicas" .named $auto.kind $task) }}
{{- end }}
{{- if not (or $auto.maxReplicas .root.Values.learner.enabled) }}
{{- fail (printf "%s.autoscaling.maxReplicas is null and learner.enabled is false: the capacity of the run is not known here; set maxReplicas" .named) }}
{{- end }}
{{- if and (eq $auto.kind "hpa") (not (regexMatch "^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$" .root.Values.run)) }}
{{- fail (printf "run is %s, and %s.autoscaling.kind is hpa, which looks for it as a value of a label: at most 63 characters, the last a letter or a digit; name the run so, or set kind to keda" .root.Values.run .named) }}
{{- end }}
{{- if lt (include "asympo.maxGenerators" . | int) (int $auto.minReplicas) }}
{{- fail (printf "%s.autoscaling.minReplicas is %v and maxReplicas %v: set minReplicas to at most maxReplicas" .named $auto.minReplicas $auto.maxReplicas) }}
{{- end }}
{{- if eq $auto.kind "keda" }}
{{- if not $auto.prometheusUrl }}
{{- fail (printf "%s.autoscaling.kind is keda and prometheusUrl is empty: set it to where Prometheus answers, such as http://prometheus-operated.monitoring:9090" .named) }}
{{- end }}
{{- if not (.root.Capabilities.APIVersions.Has "keda.sh/v1alpha1/ScaledObject") }}
{{- fail (printf "%s.autoscaling.kind is keda and the cluster has no kind ScaledObject: install KEDA, or set kind to hpa or none" .named) }}
{{- end }}
{{- if and $auto.authentication (not $auto.authModes) }}
{{- fail (printf "%s.autoscaling.authentication is %s and authModes is empty: KEDA would send nothing of it; set authModes to what it holds, such as bearer or tls,basic, or to none for an identity of the pod" .named $auto.authentication) }}
{{- end }}
{{- if and $auto.authModes (not $auto.authentication) }}
{{- fail (printf "%s.autoscaling.authModes is %s and authentication is empty: set authentication to the TriggerAuthentication that holds it" .named $auto.authModes) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "asympo.refusePage" -}}
{{- $page := .Values.learner.page }}
{{- $isOutside := or $page.ingress.host $page.httpRoute.parentRefs }}
{{- if and $isOutside .Values.networkPolicy.enabled (not $page.allowFrom) }}
{{- fail "learner.page is brought out of the cluster and learner.page.allowFrom is empty: the network policies would let nobody through; set learner.page.allowFrom to where the ingress controller or the gateway runs" }}
{{- end }}
{{- if and $page.httpRoute.parentRefs (not $page.httpRoute.hostnames) }}
{{- fail "learner.page.httpRoute.hostnames is empty: the page answers only for names that it knows; set hostnames" }}
{{- end }}
{{- if and $page.httpRoute.parentRefs (not (.Capabilities.APIVersions.Has "gateway.networking.k8s.io/v1/HTTPRoute")) }}
{{- fail "learner.page.httpRoute.parentRefs is set and the cluster has no kind HTTPRoute: install the Gateway API, or use learner.page.ingress" }}
{{- end }}
{{- end }}

{{- define "asympo.refuseControl" -}}
{{- $control := .Values.control }}
{{- if and $control.allowFrom (not $control.tls.secret) }}
{{- fail "control.allowFrom opens the control services and control.tls.secret is empty: without certificates they listen inside each pod only; set control.tls.secret" }}
{{- end }}
{{- if and $control.tls.secret .Values.networkPolicy.enabled (not $control.allowFrom) }}
{{- fail (printf "control.tls.secret is %s and control.allowFrom is empty: the network policies would let nobody reach the control services; set control.allowFrom to who calls them" $control.tls.secret) }}
{{- end }}
{{- if and $control.allowFrom (not .Values.networkPolicy.enabled) }}
{{- fail "control.allowFrom is for network policies, and networkPolicy.enabled is false: set it to true, or leave control.allowFrom empty" }}
{{- end }}
{{- end }}

{{- define "asympo.refuseTracing" -}}
{{- $tracing := .Values.tracing }}
{{- if and $tracing.endpoint .Values.networkPolicy.enabled (not $tracing.to) }}
{{- fail (printf "tracing.endpoint is %s and tracing.to is empty: the network policies would let no span out; set tracing.to to where the collector runs" $tracing.endpoint) }}
{{- end }}
{{- if and $tracing.to (not $tracing.endpoint) }}
{{- fail "tracing.to opens the way to a collector and tracing.endpoint is empty: no traces are made; set tracing.endpoint" }}
{{- end }}
{{- end }}

{{- define "asympo.refuseGateway" -}}
{{- $gateway := .Values.gateway }}
{{- if $gateway.enabled }}
{{- include "asympo.refuseResources" (dict "root" . "named" "gateway" "values" (merge (dict "gpus" 0 "gpuResource" "nvidia.com/gpu") $gateway)) }}
{{- if not (and $gateway.producersFrom.secret $gateway.producersFrom.key) }}
{{- fail "gateway.enabled is true and no producers are named: beyond its pod a gateway asks everybody for a token; create a Secret with a producers.toml, as docs/producers.md shows, and set gateway.producersFrom.secret and .key" }}
{{- end }}
{{- if and $gateway.doorsTokenFrom.secret (not (include "asympo.doors" . | fromJsonArray)) }}
{{- fail "gateway.doorsTokenFrom is for doors and there are none: set gateway.settings.doors, or generator.settings.door" }}
{{- end }}
{{- if $gateway.autoscaling.enabled }}
{{- if not ($gateway.resources.requests | default dict).cpu }}
{{- fail "gateway.autoscaling.enabled is true and gateway.resources.requests.cpu is not set: the load is a share of it; set it to 1" }}
{{- end }}
{{- if gt (int $gateway.autoscaling.minReplicas) (int $gateway.autoscaling.maxReplicas) }}
{{- fail (printf "gateway.autoscaling.minReplicas is %d and maxReplicas is %d: set maxReplicas to at least as many" (int $gateway.autoscaling.minReplicas) (int $gateway.autoscaling.maxReplicas)) }}
{{- end }}
{{- end }}
{{- if and .Values.networkPolicy.enabled (not $gateway.allowFrom) (not .Values.environment.enabled) }}
{{- fail "gateway.enabled is true and gateway.allowFrom is empty: the network policies would let no producer through; set gateway.allowFrom to where producers run" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "asympo.refuseSecrets" -}}
{{- if include "asympo.isOnline" . }}
{{- $external := .Values.redis.external }}
{{- $wanted := list (dict "value" "redis.external.urlFrom" "name" $external.urlFrom.secret "keys" (list $external.urlFrom.key)) }}
{{- $wanted = append $wanted (dict "value" "redis.external.caFrom" "name" $external.caFrom.secret "keys" (list $external.caFrom.key)) }}
{{- $wanted = append $wanted (dict "value" "redis.external.clientCertificate" "name" $external.clientCertificate.secret "keys" (values $external.clientCertificate.keys | sortAlpha)) }}
{{- $wanted = append $wanted (dict "value" "redis.external.sentinel.caFrom" "name" $external.sentinel.caFrom.secret "keys" (list $external.sentinel.caFrom.key)) }}
{{- $wanted = append $wanted (dict "value" "redis.external.sentinel.passwordFrom" "name" $external.sentinel.passwordFrom.secret "keys" (list $external.sentinel.passwordFrom.key)) }}
{{- $wanted = append $wanted (dict "value" "model.download.token" "name" .Values.model.download.token.secret "keys" (list .Values.model.download.token.key)) }}
{{- $wanted = append $wanted (dict "value" "control.tls.secret" "name" .Values.control.tls.secret "keys" (values .Values.control.tls.keys | sortAlpha)) }}
{{- $store := .Values.checkpoints.objectStore }}
{{- $wanted = append $wanted (dict "value" "checkpoints.objectStore.caFrom" "name" $store.caFrom.secret "keys" (list $store.caFrom.key)) }}
{{- $wanted = append $wanted (dict "value" "checkpoints.objectStore.credentials.secret" "name" $store.credentials.secret "keys" (values $store.credentials.keys | sortAlpha)) }}
{{- $keys := .Values.redis.auth.keys }}
{{- $roles := list $keys.learner $keys.generator }}
{{- if eq .Values.redis.mode "embedded" }}{{ $roles = append $roles $keys.operator }}{{ end }}
{{- with .Values.gateway }}
{{- if .enabled }}
{{- $roles = append $roles $keys.gateway }}
{{- $wanted = append $wanted (dict "value" "gateway.producersFrom" "name" .producersFrom.secret "keys" (list .producersFrom.key)) }}
{{- $wanted = append $wanted (dict "value" "gateway.doorsTokenFrom" "name" .doorsTokenFrom.secret "keys" (list .doorsTokenFrom.key)) }}
{{- end }}
{{- end }}
{{- if .Values.evaluator.enabled }}{{ $roles = append $roles $keys.evaluator }}{{ end }}
{{- with .Values.environment }}
{{- if .enabled }}{{ $wanted = append $wanted (dict "value" "environment.tokenFrom" "name" .tokenFrom.secret "keys" (list .tokenFrom.key)) }}{{ end }}
{{- end }}
{{- $wanted = append $wanted (dict "value" "redis.auth.existingSecret" "name" .Values.redis.auth.existingSecret "keys" $roles) }}
{{- range $wanted }}
{{- if .name }}
{{- $secret := include "asympo.present" (dict "root" $ "apiVersion" "v1" "kind" "Secret" "name" .name) | fromJson }}
{{- if not $secret }}
{{- fail (printf "%s names the Secret %s, which namespace %s does not have: create it first" .value .name $.Release.Namespace) }}
{{- end }}
{{- range $key := .keys }}
{{- if not (hasKey ($secret.data | default dict) $key) }}
{{- fail (printf "the Secret %s has no key %s: add it" $secret.metadata.name $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What Kubernetes does not let an upgrade change, said before it says it. */}}
{{- define "asympo.refuseImmutable" -}}
{{- $policy := (include "asympo.presentLearner" . | fromJson).podManagementPolicy }}
{{- if and .Values.learner.enabled (gt (int .Values.learner.nodes) 1) (eq .Values.learner.kind "StatefulSet") (eq ($policy | default "Parallel") "OrderedReady") }}
{{- $name := printf "%s-learner" (include "asympo.fullname" .) }}
{{- fail (printf "learner.nodes is %d and the StatefulSet %s starts its pods one after the other, which Kubernetes does not let an upgrade change: kubectl --namespace %s delete statefulset %s --cascade=orphan, then upgrade again" (int .Values.learner.nodes) $name .Release.Namespace $name) }}
{{- end }}
{{- include "asympo.refuseNameOverride" . }}
{{- if eq .Values.redis.mode "embedded" }}
{{- include "asympo.refuseBrokerVolume" . }}
{{- end }}
{{- if not .Values.checkpoints.existingClaim }}
{{- $name := include "asympo.checkpointsClaim" . }}
{{- $there := (include "asympo.present" (dict "root" . "apiVersion" "v1" "kind" "PersistentVolumeClaim" "name" $name) | fromJson).spec | default dict }}
{{- $class := .Values.checkpoints.storageClassName }}
{{- $size := ((($there.resources | default dict).requests) | default dict).storage }}
{{- if and $size (lt (include "asympo.number" .Values.checkpoints.size | float64) (include "asympo.number" $size | float64)) }}
{{- fail (printf "checkpoints.size is %v and the claim %s has %s, which Kubernetes does not let an upgrade reduce: set it back" .Values.checkpoints.size $name $size) }}
{{- end }}
{{- if and $there.accessModes (ne (first $there.accessModes) .Values.checkpoints.accessMode) }}
{{- fail (printf "checkpoints.accessMode is %s and the claim %s has %s, which Kubernetes does not let an upgrade change: set it back, or copy what the claim holds into a new one and set checkpoints.existingClaim" .Values.checkpoints.accessMode $name (first $there.accessModes)) }}
{{- end }}
{{- if and $class $there.storageClassName (ne $class $there.storageClassName) }}
{{- fail (printf "checkpoints.storageClassName is %s and the claim %s has %s, which Kubernetes does not let an upgrade change: set it back, or copy what the claim holds into a new one and set checkpoints.existingClaim" $class $name $there.storageClassName) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The name is in every selector, and with fullnameOverride the objects stay the same ones. */}}
{{- define "asympo.refuseNameOverride" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $workloads := list }}
{{- if and .Values.learner.enabled (eq .Values.learner.kind "StatefulSet") }}{{ $workloads = append $workloads (dict "kind" "StatefulSet" "component" "learner") }}{{ end }}
{{- if eq .Values.redis.mode "embedded" }}{{ $workloads = append $workloads (dict "kind" "StatefulSet" "component" "redis") }}{{ end }}
{{- range $component := list "gateway" "evaluator" "environment" }}
{{- if (index $.Values $component).enabled }}{{ $workloads = append $workloads (dict "kind" "Deployment" "component" $component) }}{{ end }}
{{- end }}
{{- range include "asympo.generators" . | fromJsonArray }}{{ $workloads = append $workloads (dict "kind" "Deployment" "component" "generator" "pool" .pool) }}{{ end }}
{{- range $workloads }}
{{- $there := include "asympo.present" (dict "root" $ "apiVersion" "apps/v1" "kind" .kind "name" (include "asympo.name" (merge (dict "root" $) .))) | fromJson }}
{{- $labels := dig "spec" "selector" "matchLabels" dict $there }}
{{- $selected := get $labels "app.kubernetes.io/name" }}
{{- if and (eq (get $labels "app.kubernetes.io/instance") $.Release.Name) (ne $selected $name) }}
{{- fail (printf "nameOverride makes the label app.kubernetes.io/name %s and the %s %s selects %s, which Kubernetes does not let an upgrade change: set nameOverride=%s" $name .kind $there.metadata.name $selected $selected) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "asympo.refuseBrokerVolume" -}}
{{- $name := printf "%s-redis" (include "asympo.fullname" .) }}
{{- $there := (include "asympo.present" (dict "root" . "apiVersion" "apps/v1" "kind" "StatefulSet" "name" $name) | fromJson).spec | default dict }}
{{- range $there.volumeClaimTemplates }}
{{- $size := toString .spec.resources.requests.storage }}
{{- $wanted := include "asympo.quantity" $.Values.redis.embedded.persistence.size | trimAll "\"" }}
{{- $class := $.Values.redis.embedded.persistence.storageClassName }}
{{- if and $class (ne $class (.spec.storageClassName | default "")) }}
{{- fail (printf "redis.embedded.persistence.storageClassName is %s and the StatefulSet %s has %s, which Kubernetes does not let an upgrade change: set it back, or move the broker as docs/operations.md moves a run" $class $name (.spec.storageClassName | default "the cluster's default")) }}
{{- end }}
{{- if ne (include "asympo.number" $size) (include "asympo.number" $wanted) }}
{{- fail (printf "redis.embedded.persistence.size is %s and the StatefulSet %s has %s, which Kubernetes does not let an upgrade change: enlarge the claim itself, kubectl --namespace %s edit pvc data-%s-0, where its storage class allows that, then kubectl --namespace %s delete statefulset %s --cascade=orphan, and upgrade again" $wanted $name $size $.Release.Namespace $name $.Release.Namespace $name) }}
{{- end }}
{{- end }}
{{- end }}
