"""The repository on the Hub that a model is uploaded to."""

from __future__ import annotations

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError


# Status codes of the Hub for a token that is missing or wrong, and for one that may not write.
_REFUSALS = (401, 403)


def prepare_repository(
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """
    Creates a repository and its branch unless they exist, and checks that the account may write to it: the Hub lets everybody
    "create" a public repository that exists. Nothing is uploaded.

    Args:
        repo_id (`str`): name of the repository.
        private (`bool`, *optional*): whether a new repository is private; by default, what the account or organization has set.
        token (`bool` or `str`, *optional*): token of the Hub; by default, the one of `hf auth login`.
        revision (`str`, *optional*): branch that will be uploaded to; by default, the main branch.
        create_pr (`bool`, defaults to `False`): whether a pull request will be opened, which everybody may do.

    Returns:
        `str`: the name of the repository with its owner.

    Raises:
        huggingface_hub.errors.HfHubHTTPError: if the Hub refuses it; the message says how to log in.
    """
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if not create_pr:
            api.auth_check(repo_id, write=True)
            if revision is not None:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
    except HfHubHTTPError as error:
        if error.response.status_code in _REFUSALS:
            error.append_to_message(
                f"\nExpected an account that may write to the repository {repo_id!r}. Log in with `hf auth login`, "
                "or set a token with this permission, or choose a repository of your own."
            )
        raise
    return repo_id
