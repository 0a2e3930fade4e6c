import pwd

import pytest

from backendai_mgr.agent import accounts
from backendai_mgr.agent.accounts import FIRST_UID, Account, AccountBook, NoAccountLeft, separate_accounts

from .harness import destroy, new_site, run


@pytest.fixture
def books(tmp_path):
    """Two agents' views of one book."""
    return AccountBook(tmp_path / "book"), AccountBook(tmp_path / "book")


@pytest.fixture
def holders(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    return folders


def test_no_account_goes_to_two_holders(books, holders):
    taken = [books[index % 2].take(holder) for index, holder in enumerate(holders)]
    assert len({account.uid for account in taken}) == 3
    assert all(account.uid >= FIRST_UID and account.gid == account.uid for account in taken)


def test_an_account_is_free_again_when_it_is_given_back_or_its_holder_has_gone(books, holders):
    first, second = (books[0].take(holder) for holder in holders[:2])
    books[1].give_back(first, holders[1])  # not its own
    assert books[1].take(holders[2]) not in (first, second)
    books[0].give_back(first, holders[0])
    assert books[1].take(holders[0]) == first
    holders[1].rmdir()
    assert books[1].take(holders[2]) == second


def test_a_holder_gets_its_account_again_unless_it_went_to_another(books, holders):
    account = books[0].take(holders[0])
    assert books[1].keep(account.uid, holders[0]) == account
    assert books[1].keep(account.uid, holders[1]) is None
    books[0].give_back(account, holders[0])
    assert books[1].keep(account.uid, holders[1]) == account
    assert books[0].keep(account.uid, holders[0]) is None


def test_accounts_with_a_name_are_left_alone(books, holders, monkeypatch):
    monkeypatch.setattr(accounts, "FIRST_UID", 0)
    first = pwd.getpwuid(0)
    assert books[0].take(holders[0]) != Account(first.pw_uid, first.pw_uid)


def test_when_all_are_taken_that_is_said(books, holders, monkeypatch):
    monkeypatch.setattr(accounts, "_LAST_UID", FIRST_UID + 2)
    for holder in holders[:2]:
        books[0].take(holder)
    with pytest.raises(NoAccountLeft):
        books[0].take(holders[2])


async def test_only_a_kernels_own_account_can_be_swept():
    with pytest.raises(ValueError, match="not a kernel's"):
        await accounts.kill_all_of(Account(0, 0))


async def test_two_agents_of_one_machine_do_not_touch_each_others_kernels(site, registry):
    ask = "import os; print(os.getuid())"
    with new_site() as other_site:
        async with other_site.agent() as other:
            mine, theirs = site.spec(), other_site.spec()
            await registry.create_kernel(mine)
            await other.create_kernel(theirs)
            uids = {(await run(registry, mine, "r", ask))[0], (await run(other, theirs, "r", ask))[0]}
            assert len(uids) == (2 if separate_accounts() else 1)
            await destroy(other, other_site, theirs)
            assert (await run(registry, mine, "still", "print('here')"))[0] == "here\n"
