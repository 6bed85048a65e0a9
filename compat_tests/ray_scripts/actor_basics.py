"""Actors: state, order, methods of several kinds, handles that travel, errors."""

import ray

ray.init(num_cpus=2, include_dashboard=False)


@ray.remote
class Account:
    """Money of somebody."""

    bank = "the bank"

    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance
        self.log = []

    def deposit(self, amount):
        self.balance += amount
        self.log.append(amount)
        return self.balance

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError(f"{self.owner} has only {self.balance}")
        self.balance -= amount
        return self.balance

    @ray.method(num_returns=2)
    def both(self):
        return self.owner, self.balance

    def history(self):
        return self.log

    @staticmethod
    def twice(x):
        return 2 * x

    @classmethod
    def of_whom(cls):
        return cls.bank


@ray.remote
def pay(account, amount):
    return ray.get(account.deposit.remote(amount))


account = Account.remote("Ann", balance=10)
print(ray.get([account.deposit.remote(i) for i in range(5)]))
owner, balance = account.both.remote()
print(ray.get(owner), ray.get(balance))
try:
    ray.get(account.withdraw.remote(1000))
except ValueError as error:
    print("Ann has only 20" in str(error))
try:
    ray.get(account.withdraw.remote(1000))
except ray.exceptions.RayTaskError:
    print("a task error")
print(ray.get(pay.remote(account, 100)))
print(sorted(ray.get([pay.remote(account, 1) for _ in range(5)])))
print(ray.get(account.history.remote())[:5])
print(ray.get(account.twice.remote(4)), ray.get(account.of_whom.remote()))
print(ray.get(account.deposit.options(num_returns=1).remote(0)))
ref = account.deposit.remote(5)
print(ray.get(account.deposit.remote(ref)))
print(isinstance(account, ray.actor.ActorHandle))
handles = {"a": [account, Account.remote("Bob")]}


@ray.remote
def everybody(handles):
    return [ray.get(one.both.remote()[0]) for one in handles["a"]]


print(ray.get(everybody.remote(handles)))
try:
    account.nothing.remote()
except AttributeError:
    print("no such method")
try:
    Account("Eve")
except TypeError:
    print("made by .remote")
print(ray.get(account.__ray_ready__.remote()))
print(ray.get(account.__ray_call__.remote(lambda self, more: self.balance + more, 1000)))
