/*
 * floor ADDRESS: a minimal policy server, which costs less than any real one. It finds the end of each request and
 * answers DUNNO without parsing the request, so its cost is that of the kernel and the protocol. For each connection it
 * only remembers whether the last byte was a newline.
 */
#define _GNU_SOURCE
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#include "address.h"

#define ANSWER "action=DUNNO\n\n"
#define MAX_CONNECTIONS 65536

static char ended_line[MAX_CONNECTIONS];

/* Answers each request whose end is in these bytes. */
static void answer(int client, const char *bytes, size_t count)
{
    const char *end = bytes + count;

    if (ended_line[client] && *bytes == '\n') {
        must(write(client, ANSWER, sizeof ANSWER - 1), "write");
        bytes++;
    }
    for (const char *found; (found = memmem(bytes, end - bytes, "\n\n", 2)); bytes = found + 2)
        must(write(client, ANSWER, sizeof ANSWER - 1), "write");
    ended_line[client] = bytes < end && end[-1] == '\n';
}

int main(int argc, char **argv)
{
    static char bytes[65536];
    struct epoll_event ready[256];

    if (argc != 2) {
        fprintf(stderr, "usage: floor inet:127.0.0.1:PORT|unix:/PATH\n");
        return 2;
    }
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){MAX_CONNECTIONS, MAX_CONNECTIONS});
    struct address address = address_of(argv[1]);
    int listener = must(socket(address.socket.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    must(bind(listener, &address.socket.any, address.length), argv[1]);
    must(listen(listener, 4096), "listen");
    int poll = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.fd = listener});
    for (;;) {
        int count = must(epoll_wait(poll, ready, 256, -1), "epoll_wait");
        for (int i = 0; i < count; i++) {
            int client = ready[i].data.fd;
            if (client == listener) {
                client = must(accept4(listener, NULL, NULL, SOCK_NONBLOCK), "accept");
                if (client >= MAX_CONNECTIONS) {
                    close(client);
                    continue;
                }
                send_at_once(client);
                ended_line[client] = 0;
                epoll_ctl(poll, EPOLL_CTL_ADD, client, &(struct epoll_event){.events = EPOLLIN, .data.fd = client});
                continue;
            }
            ssize_t got = read(client, bytes, sizeof bytes);
            if (got > 0)
                answer(client, bytes, got);
            else
                close(client);
        }
    }
}
