"""Shows how far it has got, as results come in any order."""

import multiprocessing


def work(n):
    return n, sum(range(n))


if __name__ == "__main__":
    total, found = 200, {}
    with multiprocessing.Pool() as pool:
        for done, (n, value) in enumerate(pool.imap_unordered(work, range(total), chunksize=7), 1):
            found[n] = value
            if done % 50 == 0:
                print(f"{100 * done // total} %")
    print(len(found), found[199])
