{{- define "pika.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pika.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pika.labels" -}}
{{ include "pika.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "pika.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{/* Seconds that open requests have to end; 30 is the gateway's own default. */}}
{{- define "pika.drainSeconds" -}}
{{- $pool := fromYaml .Values.pool -}}
{{- if not (hasKey $pool "models") -}}
{{- fail (printf "pool is no pool.yaml, which has the keys models, arms and policy: --set-file pool=pool.yaml %s" ($pool.Error | default "")) -}}
{{- end -}}
{{ dig "server" "drain_s" 30 $pool | ceil | int }}
{{- end -}}
