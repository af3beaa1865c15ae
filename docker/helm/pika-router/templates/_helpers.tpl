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

{{/* URL of the pool's ledger where that is SQLite; nothing where there is no ledger, or the environment says where it is. */}}
{{- define "pika.sqlite" -}}
{{- $ledger := get (fromYaml .Values.pool) "ledger" -}}
{{- if kindIs "map" $ledger -}}
{{- $url := $ledger.url | default "sqlite:///pika-ledger.sqlite" -}}
{{- if and (not $ledger.url_env) (hasPrefix "sqlite:" (toString $url)) -}}
{{ $url }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Refuses a ledger that pods could not make, or that would be another one in each of them. */}}
{{- define "pika.checkLedger" -}}
{{- $pods := .Values.autoscaling.enabled | ternary .Values.autoscaling.maxReplicas .Values.replicaCount | int -}}
{{- with include "pika.sqlite" . -}}
{{- if gt $pods 1 -}}
{{- fail (printf "the pool's ledger is SQLite (%s), which %d pods do not share: each would count budgets by itself and know no other's outcomes. Either ledger: {url_env: PIKA_LEDGER_URL} in the pool, with PostgreSQL's URL in a Secret that envFromSecrets names; or one pod: --set replicaCount=1, without autoscaling" . $pods) -}}
{{- end -}}
{{- if not (hasPrefix "sqlite:////var/lib/pika/" .) -}}
{{- fail (printf "the pool's ledger (%s) is where pods cannot write, or do not keep it: ledger: {url: \"sqlite:////var/lib/pika/ledger.sqlite\"} in the pool" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Seconds that open requests have to end; 30 is the gateway's own default. */}}
{{- define "pika.drainSeconds" -}}
{{- $pool := fromYaml .Values.pool -}}
{{- if not (hasKey $pool "models") -}}
{{- fail (printf "pool is no pool.yaml, which has the keys models, arms and policy: --set-file pool=pool.yaml %s" ($pool.Error | default "")) -}}
{{- end -}}
{{ dig "server" "drain_s" 30 $pool | ceil | int }}
{{- end -}}
