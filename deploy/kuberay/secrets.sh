#!/bin/sh
# Writes the Secrets that kustomization.yaml refers to, with values made on the spot, to standard output:
#
#   deploy/kuberay/secrets.sh CLIENT [NAMESPACE] | kubectl apply -f -
#
# The key of the first client goes to standard error and is kept nowhere else. Certificates are signed by an authority whose
# key is thrown away: to renew them (after DAYS), run it again and start the pods anew. Clients trust the doors' ca.crt.
# Where there is cert-manager, let it make diptych-cluster-tls and diptych-doors-tls instead.
set -eu
umask 077
client=${1:?name the first client, e.g. $0 acme}
namespace=${2:-default}
days=${DAYS:-365}
case $client in *[!A-Za-z0-9._-]*) echo "a client is called by letters, digits, '.', '_' and '-'" >&2; exit 1 ;; esac

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

random() { openssl rand -hex 32; }

# authority NAME: NAME-ca.key, NAME-ca.crt
authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "$days" -subj "/CN=$1 authority" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign" \
        -keyout "$1-ca.key" -out "$1-ca.crt" 2>/dev/null
}

# certificate NAME SUBJECT-ALTERNATIVE-NAMES USAGES: NAME.key, NAME.crt
certificate() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" \
        -keyout "$1.key" -out "$1.csr" 2>/dev/null
    printf 'subjectAltName=%s\nextendedKeyUsage=%s\nbasicConstraints=CA:FALSE\n' "$2" "$3" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA "$1-ca.crt" -CAkey "$1-ca.key" -CAcreateserial -days "$days" \
        -extfile "$1.ext" -out "$1.crt" 2>/dev/null
}

# secret NAME TYPE KEY FILE [KEY FILE]...
secret() {
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  labels:\n    app.kubernetes.io/name: diptych\n' "$1"
    printf 'type: %s\ndata:\n' "$2"
    shift 2
    while [ $# -gt 0 ]; do
        printf '  %s: %s\n' "$1" "$(base64 < "$2" | tr -d '\n')"
        shift 2
    done
}

random | tr -d '\n' > token
random | tr -d '\n' > password
key="sk-diptych-$(random)"
digest=$(printf '%s' "$key" | openssl dgst -sha256 -r | cut -d' ' -f1)
printf '[[keys]]\ntenant = "%s"\nsha256 = "%s"\n' "$client" "$digest" > keys.toml
authority cluster
certificate cluster "DNS:diptych-cluster" "serverAuth,clientAuth"
authority doors
certificate doors "DNS:diptych,DNS:diptych.$namespace,DNS:diptych.$namespace.svc,DNS:localhost,IP:127.0.0.1" "serverAuth"

secret diptych-ray-token Opaque auth_token token
secret diptych-valkey Opaque password password
secret diptych-keys Opaque keys.toml keys.toml
secret diptych-cluster-tls kubernetes.io/tls tls.crt cluster.crt tls.key cluster.key ca.crt cluster-ca.crt
secret diptych-doors-tls kubernetes.io/tls tls.crt doors.crt tls.key doors.key ca.crt doors-ca.crt
echo "the key of $client: $key" >&2
