/* A name server that does not answer: every look-up takes half a minute, and fails. */
#include <netdb.h>
#include <unistd.h>

#pragma GCC visibility push(default)

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **out)
{
    (void)node;
    (void)service;
    (void)hints;
    *out = NULL;
    sleep(30);
    return EAI_AGAIN;
}
