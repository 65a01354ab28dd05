{{/* What Kubernetes refuses of a whole pod, when a person's parts are put beside ours: said while it is rendered. */}}

{{/* The pod of .pod, as it is. .named: where its values are. */}}
{{- define "asympo.checkedPod" -}}
{{- $named := .named }}
{{- $spec := (fromYaml .pod).spec }}
{{- $volumes := list }}
{{- range $spec.volumes }}
{{- if has .name $volumes }}
{{- fail (printf "%s has two volumes named %s, since the chart brings one: give yours in extraVolumes another name" $named .name) }}
{{- end }}
{{- $volumes = append $volumes .name }}
{{- end }}
{{- $names := list }}
{{- range concat $spec.containers ($spec.initContainers | default list) }}
{{- if has .name $names }}
{{- fail (printf "%s has two containers named %s, since the chart brings one: give yours another name" $named .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- include "asympo.checkMounts" (dict "container" . "volumes" $volumes "named" $named) }}
{{- include "asympo.checkAmounts" (dict "container" . "named" $named) }}
{{- $variables := list }}
{{- range .env }}
{{- if has .name $variables }}
{{- fail (printf "%s gives a container the variable %s twice: leave one out" $named .name) }}
{{- end }}
{{- $variables = append $variables .name }}
{{- end }}
{{- end }}
{{- .pod }}
{{- end }}

{{- define "asympo.checkMounts" -}}
{{- $paths := list }}
{{- range .container.volumeMounts }}
{{- $path := trimSuffix "/" .mountPath }}
{{- if has $path $paths }}
{{- fail (printf "%s mounts two volumes at %s of the container %s: choose another mountPath in data or extraVolumeMounts" $.named $path $.container.name) }}
{{- end }}
{{- if not (has .name $.volumes) }}
{{- fail (printf "%s mounts the volume %s in the container %s and has none of that name: add it to extraVolumes" $.named .name $.container.name) }}
{{- end }}
{{- $paths = append $paths $path }}
{{- end }}
{{- end }}

{{/* .container .named, and .settings: which value makes a request that is not set among resources.requests. */}}
{{- define "asympo.checkAmounts" -}}
{{- $resources := .container.resources | default dict }}
{{- $limits := $resources.limits | default dict }}
{{- range $name, $amount := $resources.requests }}
{{- $limit := get $limits $name }}
{{- if and (contains "/" $name) (ne (toString $amount) (toString $limit)) }}
{{- fail (printf "%s requests %v of %s for the container %s, and its limit is %v: such a resource is limited to what is requested; set it among the limits alone" $.named $amount $name $.container.name ($limit | default "none")) }}
{{- end }}
{{- if $limit }}
{{- if gt (include "asympo.number" $amount | float64) (include "asympo.number" $limit | float64) }}
{{- $setting := get ($.settings | default dict) $name | default (printf "resources.requests.%s" $name) }}
{{- fail (printf "%s requests %v of %s for the container %s, and its limit is %v: set %s to at most the limit" $.named $amount $name $.container.name $limit $setting) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* What a quantity amounts to. */}}
{{- define "asympo.number" -}}
{{- $unit := regexFind "[a-zA-Z]+$" (toString .) }}
{{- $worth := dict "" 1 "m" 0.001 "k" 1e3 "Ki" 1024 "M" 1e6 "Mi" 1048576 "G" 1e9 "Gi" 1073741824 "T" 1e12 "Ti" 1099511627776 "P" 1e15 "Pi" 1125899906842624 "E" 1e18 "Ei" 1152921504606846976 "u" 1e-6 "n" 1e-9 }}
{{- mulf (trimSuffix $unit (toString .) | float64) (get $worth $unit) }}
{{- end }}
