/* u-µP's ops in C, in float64, from the golden vectors alone: reads DIR/index.json and DIR/inputs, writes DIR/outputs.

   cc -O2 -o umup umup.c -lm && ./umup DIR && python -m microumup vectors check DIR --only 'linear.*64' ...

   The index has a case on a line, and the cases of an op together, so strstr finds what is needed. A safetensors file is 8 bytes of header length, the
   header in JSON, and the arrays; one is read and one is written with forty lines each. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_TENSORS 512
typedef struct { char *header, *data; } File;
typedef struct { int n, shape[4]; long size; double *x; } Tensor;
typedef struct { char name[256]; Tensor t; } Named;

static Named outputs[MAX_TENSORS];
static int count;

static char *read_all(const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) { fprintf(stderr, "umup: cannot read %s\n", path); exit(2); }
    fseek(f, 0, SEEK_END);
    long size = ftell(f);
    rewind(f);
    char *all = malloc(size + 1);
    if (fread(all, 1, size, f) != (size_t)size) exit(2);
    all[size] = 0;
    fclose(f);
    return all;
}

static File open_safetensors(const char *path) {
    char *all = read_all(path);
    uint64_t length;
    memcpy(&length, all, 8);
    char *header = malloc(length + 1);
    memcpy(header, all + 8, length);
    header[length] = 0;
    return (File){header, all + 8 + length};
}

/* A tensor by its name, of F64, F32 or I32, as doubles. */
static Tensor get(File f, const char *case_name, const char *name) {
    char key[160], dtype[8];
    long from, to;
    snprintf(key, sizeof key, "\"%s/%s\":", case_name, name);
    char *at = strstr(f.header, key);
    if (!at) { fprintf(stderr, "umup: no %s\n", key); exit(2); }
    sscanf(strstr(at, "\"dtype\":\"") + 9, "%7[^\"]", dtype);
    sscanf(strstr(at, "\"data_offsets\":[") + 16, "%ld,%ld", &from, &to);
    Tensor t = {0, {1, 1, 1, 1}, 1, NULL};
    for (char *p = strstr(at, "\"shape\":[") + 9; *p != ']'; p += *p == ',') {
        t.shape[t.n] = (int)strtol(p, &p, 10);
        t.size *= t.shape[t.n++];
    }
    t.x = malloc(t.size * sizeof(double));
    for (long i = 0; i < t.size; i++) {
        char *source = f.data + from;
        if (dtype[0] == 'I') t.x[i] = ((int32_t *)source)[i];
        else if (dtype[1] == '3') t.x[i] = ((float *)source)[i];
        else memcpy(&t.x[i], source + 8 * i, 8);
    }
    return t;
}

static Tensor like(Tensor a) {
    a.x = calloc(a.size, sizeof(double));
    return a;
}

static void put(const char *case_name, const char *name, Tensor t) {
    snprintf(outputs[count].name, sizeof outputs[count].name, "%s/%s", case_name, name);
    outputs[count++].t = t;
}

static void write_safetensors(const char *path) {
    FILE *f = fopen(path, "wb");
    char *header = malloc(MAX_TENSORS * 256);
    long n = sprintf(header, "{"), offset = 0;
    for (int i = 0; i < count; i++) {
        Tensor t = outputs[i].t;
        n += sprintf(header + n, "%s\"%s\":{\"dtype\":\"F64\",\"shape\":[", i ? "," : "", outputs[i].name);
        for (int k = 0; k < t.n; k++) n += sprintf(header + n, "%s%d", k ? "," : "", t.shape[k]);
        n += sprintf(header + n, "],\"data_offsets\":[%ld,%ld]}", offset, offset + 8 * t.size);
        offset += 8 * t.size;
    }
    n += sprintf(header + n, "}");
    while (n % 8) header[n++] = ' ';
    uint64_t length = n;
    fwrite(&length, 8, 1, f);
    fwrite(header, 1, n, f);
    for (int i = 0; i < count; i++) fwrite(outputs[i].t.x, 8, outputs[i].t.size, f);
    fclose(f);
    count = 0;
}

/* A number of the settings, after "key" in the case's line. */
static double number(const char *line, const char *key) {
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *at = strstr(line, quoted);
    if (!at) { fprintf(stderr, "umup: no %s in %.60s\n", key, line); exit(2); }
    return atof(at + strlen(quoted));
}

/* y = A x wT, dx = A' dy w, dw = b^-1/2 dyT x: x (b, n), w (m, n) */
static void linear(const char *name, File f, int readout) {
    Tensor x = get(f, name, "x"), w = get(f, name, "w"), dy = get(f, name, "dy");
    int m = w.shape[0], n = w.shape[1], b = (int)(x.size / n);
    double A = readout ? 1.0 / n : 1 / sqrt(n), A_back = 1 / sqrt(n), A_w = 1 / sqrt(b);
#ifdef WRONG_FAN
    A = readout ? 1.0 / m : 1 / sqrt(m);
#endif
    Tensor y = like(dy), dx = like(x), dw = like(w);
    for (int i = 0; i < b; i++)
        for (int o = 0; o < m; o++)
            for (int k = 0; k < n; k++) {
                y.x[i * m + o] += A * x.x[i * n + k] * w.x[o * n + k];
                dx.x[i * n + k] += A_back * dy.x[i * m + o] * w.x[o * n + k];
                dw.x[o * n + k] += A_w * dy.x[i * m + o] * x.x[i * n + k];
            }
    put(name, "y", y), put(name, "dx", dx), put(name, "dw", dw);
}

/* y = w[tokens], dw = sqrt(V/b) times the sum over the places of a token */
static void embedding(const char *name, File f) {
    Tensor tokens = get(f, name, "tokens"), w = get(f, name, "w"), dy = get(f, name, "dy");
    int V = w.shape[0], D = w.shape[1];
    Tensor y = like(dy), dw = like(w);
    for (long i = 0; i < tokens.size; i++)
        for (int d = 0; d < D; d++) {
            y.x[i * D + d] = w.x[(int)tokens.x[i] * D + d];
            dw.x[(int)tokens.x[i] * D + d] += sqrt((double)V / tokens.size) * dy.x[i * D + d];
        }
    put(name, "y", y), put(name, "dw", dw);
}

static void rms_norm(const char *name, File f, const char *line) {
    Tensor x = get(f, name, "x"), dy = get(f, name, "dy"), y = like(x), dx = like(x);
    int D = x.shape[x.n - 1];
    double eps = number(line, "eps");
    for (long i = 0; i < x.size; i += D) {
        double square = 0, dot = 0;
        for (int d = 0; d < D; d++) square += x.x[i + d] * x.x[i + d] / D;
        double r = 1 / sqrt(square + eps);
        for (int d = 0; d < D; d++) y.x[i + d] = x.x[i + d] * r, dot += dy.x[i + d] * y.x[i + d] / D;
        for (int d = 0; d < D; d++) dx.x[i + d] = r * (dy.x[i + d] - y.x[i + d] * dot);
    }
    put(name, "y", y), put(name, "dx", dx);
}

/* neighbours (2i, 2i+1) of a head turned by position * base^(-2i/K); backward turns back */
static void rope(const char *name, File f, const char *line) {
    Tensor x = get(f, name, "x"), dy = get(f, name, "dy"), y = like(x), dx = like(x);
    int T = x.shape[1], D = x.shape[2], K = (int)number(line, "head_dim");
    double base = number(line, "base");
    for (long i = 0; i < x.size; i += 2) {
        double angle = (i / D) % T * pow(base, -(double)(i % D % K) / K), c = cos(angle), s = sin(angle);
        y.x[i] = c * x.x[i] - s * x.x[i + 1], y.x[i + 1] = s * x.x[i] + c * x.x[i + 1];
        dx.x[i] = c * dy.x[i] + s * dy.x[i + 1], dx.x[i + 1] = -s * dy.x[i] + c * dy.x[i + 1];
    }
    put(name, "y", y), put(name, "dx", dx);
}

static double log_interpolate(double w, double upper, double lower) {
    return exp(w * log(upper) + (1 - w) * log(lower));
}

static void attention(const char *name, File f, const char *line) {
    Tensor q = get(f, name, "q"), k = get(f, name, "k"), v = get(f, name, "v"), dy = get(f, name, "dy");
    Tensor y = like(q), dq = like(q), dk = like(q), dv = like(q);
    int B = q.shape[0], T = q.shape[1], D = q.shape[2], K = (int)number(line, "head_dim");
    double alpha = number(line, "alpha"), s = number(line, "seq_len");
    double factor = 1 / log_interpolate(1 / (1 + 4 * K / (alpha * alpha)), 1, sqrt(log(s) / s));
    double *p = malloc(T * sizeof(double)), *dp = malloc(T * sizeof(double));
    for (int b = 0; b < B; b++)
        for (int h = 0; h < D; h += K)
            for (int t = 0; t < T; t++) {
                long row = ((long)b * T + t) * D + h;
                double total = 0, dot = 0;
                for (int u = 0; u <= t; u++) {
                    double score = 0;
                    for (int d = 0; d < K; d++) score += q.x[row + d] * k.x[((long)b * T + u) * D + h + d];
                    total += p[u] = exp(alpha / K * score);
                }
                for (int u = 0; u <= t; u++) {
                    long key = ((long)b * T + u) * D + h;
                    p[u] /= total, dp[u] = 0;
                    for (int d = 0; d < K; d++) {
                        y.x[row + d] += factor * p[u] * v.x[key + d];
                        dv.x[key + d] += factor * p[u] * dy.x[row + d];
                        dp[u] += factor * dy.x[row + d] * v.x[key + d];
                    }
                    dot += p[u] * dp[u];
                }
                for (int u = 0; u <= t; u++) {
                    long key = ((long)b * T + u) * D + h;
                    double dscore = alpha / K * p[u] * (dp[u] - dot);
                    for (int d = 0; d < K; d++) {
                        dq.x[row + d] += dscore * k.x[key + d];
                        dk.x[key + d] += dscore * q.x[row + d];
                    }
                }
            }
    put(name, "y", y), put(name, "dq", dq), put(name, "dk", dk), put(name, "dv", dv);
}

static void gated_silu(const char *name, File f, const char *line) {
    Tensor x = get(f, name, "x_in"), g = get(f, name, "x_gate"), dy = get(f, name, "dy");
    Tensor y = like(x), dx = like(x), dg = like(x);
    double a = number(line, "alpha"), factor = 1 / log_interpolate(1 / (1 + 1 / (a * a)), 1 / sqrt(2), 0.5);
    for (long i = 0; i < x.size; i++) {
        double s = 1 / (1 + exp(-a * g.x[i]));
        y.x[i] = factor * x.x[i] * g.x[i] * s;
        dx.x[i] = factor * dy.x[i] * g.x[i] * s;
        dg.x[i] = factor * dy.x[i] * x.x[i] * (s + a * g.x[i] * s * (1 - s));
    }
    put(name, "y", y), put(name, "dx_in", dx), put(name, "dx_gate", dg);
}

/* the mean loss; dlogits = (p - onehot) V/sqrt(V-1) */
static void cross_entropy(const char *name, File f, const char *line) {
    Tensor z = get(f, name, "logits"), targets = get(f, name, "targets"), dy = get(f, name, "dy");
    Tensor y = like(dy), dz = like(z);
    int V = z.shape[z.n - 1];
    double alpha = number(line, "alpha");
    for (long i = 0; i < targets.size; i++) {
        double total = 0, *row = z.x + i * V;
        for (int v = 0; v < V; v++) total += exp(alpha * row[v]);
        for (int v = 0; v < V; v++) {
            int hit = v == (int)targets.x[i];
            dz.x[i * V + v] = (exp(alpha * row[v]) / total - hit) * V / sqrt(V - 1);
            if (hit) y.x[0] -= (alpha * row[v] - log(total)) / targets.size;
        }
    }
    put(name, "y", y), put(name, "dlogits", dz);
}

/* y = a (x wT) + b x; the branch sees dy itself, and a waits at its base */
static void residual(const char *name, File f, const char *line) {
    Tensor x = get(f, name, "x"), w = get(f, name, "w"), dy = get(f, name, "dy");
    Tensor y = like(x), dx = like(x), dw = like(w);
    int D = x.shape[2], L = (int)number(line, "branches"), branch = (int)number(line, "branch"), k = branch / 2;
    double ratio = number(line, "alpha_res_attn_ratio"), res = number(line, "alpha_res");
    double f2 = res * res * 2 / (ratio * ratio + 1), a2 = ratio * ratio * f2;
    double tau = branch % 2 ? f2 / (L + (k + 1) * a2 + k * f2) : a2 / (L + k * a2 + k * f2);
    double a = sqrt(tau / (tau + 1)), b = sqrt(1 / (tau + 1));
    for (long i = 0; i < x.size; i += D)
        for (int o = 0; o < D; o++) {
            y.x[i + o] += b * x.x[i + o], dx.x[i + o] += b * dy.x[i + o];
            for (int n = 0; n < D; n++) {
                y.x[i + o] += a * w.x[o * D + n] * x.x[i + n];
                dx.x[i + n] += a * w.x[o * D + n] * dy.x[i + o];
                dw.x[o * D + n] += dy.x[i + o] * x.x[i + n];
            }
        }
    put(name, "y", y), put(name, "dx", dx), put(name, "dw", dw);
}

static void adamw(const char *name, File f, const char *line) {
    Tensor w = get(f, name, "w"), g = get(f, name, "g"), m = get(f, name, "m"), v = get(f, name, "v");
    double lr = number(line, "lr"), decay = number(line, "decay"), t = number(line, "t"), eps = number(line, "eps");
    for (long i = 0; i < w.size; i++) {
        m.x[i] = 0.9 * m.x[i] + 0.1 * g.x[i];
        v.x[i] = 0.999 * v.x[i] + 0.001 * g.x[i] * g.x[i];
        double step = m.x[i] / (1 - pow(0.9, t)) / (sqrt(v.x[i] / (1 - pow(0.999, t))) + eps);
        w.x[i] = (1 - decay) * w.x[i] - lr * step;
    }
    put(name, "new_w", w), put(name, "new_m", m), put(name, "new_v", v);
}

int main(int argc, char **argv) {
    if (argc != 2) { fprintf(stderr, "usage: umup DIR\n"); return 2; }
    char path[512], open_op[32] = "", name[128], op[32];
    snprintf(path, sizeof path, "%s/index.json", argv[1]);
    char *index = read_all(path);
    snprintf(path, sizeof path, "%s/outputs", argv[1]);
    mkdir(path, 0777);
    File f = {0};
    for (char *line = strtok(index, "\n"); line; line = strtok(NULL, "\n")) {
        if (sscanf(line, "{\"name\": \"%127[^\"]\", \"op\": \"%31[^\"]\"", name, op) != 2) continue;
        if (!strstr(line, "\"dtype\": \"float64\"") || !strstr(line, "\"umup\"")) continue;
        if (!strstr(" linear readout embedding rms_norm rope attention gated_silu cross_entropy residual adamw ", op))
            continue;
        if (strcmp(op, open_op)) {  /* the cases of an op are together: write the last op's file, open the next one's */
            snprintf(path, sizeof path, "%s/outputs/%s.safetensors", argv[1], open_op);
            if (*open_op) write_safetensors(path);
            snprintf(path, sizeof path, "%s/inputs/%s.safetensors", argv[1], op);
            f = open_safetensors(path);
            strcpy(open_op, op);
        }
        if (!strcmp(op, "linear")) linear(name, f, 0);
        if (!strcmp(op, "readout")) linear(name, f, 1);
        if (!strcmp(op, "embedding")) embedding(name, f);
        if (!strcmp(op, "rms_norm")) rms_norm(name, f, line);
        if (!strcmp(op, "rope")) rope(name, f, line);
        if (!strcmp(op, "attention")) attention(name, f, line);
        if (!strcmp(op, "gated_silu")) gated_silu(name, f, line);
        if (!strcmp(op, "cross_entropy")) cross_entropy(name, f, line);
        if (!strcmp(op, "residual")) residual(name, f, line);
        if (!strcmp(op, "adamw")) adamw(name, f, line);
    }
    snprintf(path, sizeof path, "%s/outputs/%s.safetensors", argv[1], open_op);
    write_safetensors(path);
    return 0;
}
