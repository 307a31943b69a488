{{- define "headwater.fullname" -}}
{{- if contains "headwater" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-headwater" (.Release.Name | trunc 30 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* All of these take (list . COMPONENT). */}}
{{- define "headwater.name" -}}
{{- printf "%s-%s" (include "headwater.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{- define "headwater.selectorLabels" -}}
app.kubernetes.io/name: headwater
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* managed-by is Helm: objects labelled "headwater" are the operator's. */}}
{{- define "headwater.labels" -}}
{{ include "headwater.selectorLabels" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Takes (list . IMAGE). */}}
{{- define "headwater.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $name := $image.repository -}}
{{- with $root.Values.imageRegistry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "headwater.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "headwater.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* What a user may set for the pods of a component: (list . VALUES). */}}
{{- define "headwater.placement" -}}
{{- with (index . 0).Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- with (index . 1).nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with (index . 1).tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with (index . 1).affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with (index . 1).priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Settings as variables: (list PREFIX SETTINGS). */}}
{{- define "headwater.settings" -}}
{{- $prefix := index . 0 -}}
{{- range $name, $value := index . 1 }}
- name: {{ $prefix }}_{{ upper $name }}
  {{- /* Helm reads numbers as floats; toJson writes whole ones without a fraction or an exponent. */}}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end -}}

{{/* A component's pods as an element of a NetworkPolicy's `from`, in whichever namespace that is: (list . COMPONENT). */}}
{{- define "headwater.peer" -}}
namespaceSelector:
  matchLabels: {kubernetes.io/metadata.name: {{ (index . 0).Release.Namespace }}}
podSelector:
  matchLabels: {{- include "headwater.selectorLabels" . | nindent 4 }}
{{- end -}}

{{/* Who may reach engines, as the operator's variables; nothing where all may. */}}
{{- define "headwater.engineAccess" -}}
{{- with .Values.engine.networkPolicy -}}
{{- if .enabled -}}
{{- $operator := include "headwater.peer" (list $ "operator") | fromYaml -}}
- name: HEADWATER_OPERATOR_ENGINE_ROUTERS
  value: {{ list (include "headwater.peer" (list $ "router") | fromYaml) | toJson | quote }}
- name: HEADWATER_OPERATOR_ENGINE_CLIENTS
  value: {{ concat (list $operator) $.Values.monitoring.from .from | toJson | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The Secret with the files of keys. */}}
{{- define "headwater.keysSecret" -}}
{{- .Values.apiKeys.existingSecret | default (include "headwater.name" (list . "api-keys")) -}}
{{- end -}}

{{/* Where the routers find Redis, as a variable; nothing where there is none. */}}
{{- define "headwater.redisUrl" -}}
{{- with .Values.redis -}}
{{- if and .enabled .existingSecret -}}
{{- fail "redis.enabled starts a Redis and redis.existingSecret names another one: give one of the two." -}}
{{- else if .enabled -}}
- {name: HEADWATER_ROUTER_REDIS_URL, value: "redis://{{ include "headwater.name" (list $ "redis") }}:6379"}
{{- else if .existingSecret -}}
- name: HEADWATER_ROUTER_REDIS_URL
  valueFrom:
    secretKeyRef: {name: {{ .existingSecret | quote }}, key: {{ .existingSecretKey | quote }}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The gateway as clients see it. */}}
{{- define "headwater.gatewayUrl" -}}
{{- if .Values.operator.gatewayUrl -}}
{{- .Values.operator.gatewayUrl -}}
{{- else if and .Values.ingress.enabled .Values.ingress.hosts -}}
{{- printf "http%s://%s" (.Values.ingress.tls | empty | ternary "" "s") (first .Values.ingress.hosts) -}}
{{- else if and .Values.httpRoute.enabled .Values.httpRoute.hostnames -}}
{{- printf "http://%s" (first .Values.httpRoute.hostnames) -}}
{{- else -}}
{{- $port := int .Values.router.service.port -}}
{{- printf "http://%s.%s.svc%s" (include "headwater.name" (list . "router")) .Release.Namespace (eq $port 80 | ternary "" (printf ":%d" $port)) -}}
{{- end -}}
{{- end -}}

{{/*
A component's rights, in all namespaces or in those of operator.namespaces: (list . COMPONENT RULES [CLUSTER_RULES]).
CLUSTER_RULES are added where the rights are the cluster's.
*/}}
{{- define "headwater.rights" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $name := include "headwater.name" (list $root $component) -}}
{{- $namespaces := $root.Values.operator.namespaces -}}
{{- $kind := empty $namespaces | ternary "ClusterRole" "Role" -}}
{{- range $namespace := $namespaces | default (list "") }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata:
  {{- if $namespace }}
  name: {{ $name }}
  namespace: {{ $namespace }}
  {{- else }}
  # Of the whole cluster, where another release may have the same name in another namespace.
  name: {{ $root.Release.Namespace }}-{{ $name }}
  {{- end }}
  labels: {{- include "headwater.labels" (list $root $component) | nindent 4 }}
rules:
  {{- index $ 2 | trim | nindent 2 }}
  {{- if and (not $namespace) (gt (len $) 3) }}
  {{- index $ 3 | trim | nindent 2 }}
  {{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  {{- if $namespace }}
  name: {{ $name }}
  namespace: {{ $namespace }}
  {{- else }}
  name: {{ $root.Release.Namespace }}-{{ $name }}
  {{- end }}
  labels: {{- include "headwater.labels" (list $root $component) | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ empty $namespace | ternary (printf "%s-%s" $root.Release.Namespace $name) $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ $root.Release.Namespace }}
{{- end }}
{{- end -}}
